"""What the tests of the commands that make images share: embeddings, a direction, a latent DDIM."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image


class WrittenShards(list):
    """The shards that ``embed`` has written, in order; after ``stop_after`` of them Ctrl-C is simulated."""

    stop_after: int | None = None


@pytest.fixture
def written(monkeypatch):
    """The shards that ``embed`` writes, and a way to interrupt it."""
    from monai_diffae.apps.embedding.shards import Shards

    shards, original = WrittenShards(), Shards.write

    def write(self, shard, *content):
        original(self, shard, *content)
        shards.append(shard)
        if len(shards) == shards.stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Shards, "write", write)
    return shards


@dataclass(frozen=True)
class Labelled:
    """The tiny bundle's cohort with a label of two classes, ``wide``, and what is made of it.

    Attributes:
        bundle: the tiny bundle, its weights shaken so that z_sem tells cases apart and the decoder heeds it.
        cohort: the table.
        embeddings: its ``embeddings.parquet``.
        direction: towards wide ventricles, fitted to it.
    """

    bundle: Path
    cohort: Path
    embeddings: Path
    direction: Path


@pytest.fixture(scope="session")
def labelled(tiny_bundle, tmp_path_factory):
    """A bundle that heeds z_sem, the embedded cohort, and a direction for a label of two classes."""
    from monai_diffae.apps.embedding.embed import embed
    from monai_diffae.apps.synthesis.fit_direction import fit_direction

    root = tmp_path_factory.mktemp("labelled")
    bundle = shutil.copytree(tiny_bundle.directory, root / "bundle", ignore=shutil.ignore_patterns("cache"))
    _shake(bundle / "models" / "model.pt")
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    for _, rows in table.groupby("split"):
        order = rows["ventricles"].rank()
        table.loc[rows.index, "wide"] = (order > len(rows) / 2).map({True: "yes", False: "no"})
    table.to_csv(root / "cohort.csv", index=False)
    embedded = embed(bundle, root / "cohort.csv", root / "embedded", device="cpu").path
    fit_direction(embedded, root / "wide.json", target="wide")
    return Labelled(bundle, root / "cohort.csv", embedded, root / "wide.json")


@pytest.fixture(scope="session")
def tiny_bundle_3d(tmp_path_factory):
    """A 3D bundle: ``directory`` and ``cohort``, 7 virtual patients of 16 x 16 x 16, one epoch, weights shaken."""
    from monai_diffae.apps.training.train import train
    from monai_diffae.bundle.folders import init_bundle
    from monai_diffae.data.samples import make_virtual_cohort

    root = tmp_path_factory.mktemp("tiny_3d")
    sizes = {"num_patients": 7, "size": 16, "spatial_dims": 3}
    cohort = make_virtual_cohort(root / "cohort", val_fraction=0.2, test_fraction=0.2, **sizes)
    directory = init_bundle(root / "bundle", "diffae_3d")
    settings = {
        "image_size": [16, 16, 16], "spacing_mm": [14.0, 14.0, 14.0], "max_epochs": 1, "batch_size": 4,
        "base_channels": 8, "channel_mult": [1, 2], "z_channels": 8,
        "network_def#unet#time_embed_channels": 16, "inferer#steps": 3, "inferer#invert_steps": 4,
        "num_pictures": 0, "mlflow": False, "device": "cpu",
    }  # fmt: skip
    train(directory, cohort, overrides=settings)
    _shake(directory / "models" / "model.pt")
    return SimpleNamespace(directory=directory, cohort=cohort)


@pytest.fixture(scope="session")
def quick_latent():
    """What makes the training of a latent DDIM take a second or two."""
    return {
        "max_epochs": 2, "batch_size": 2, "val_interval": 1, "report_every": 1, "mlflow": False, "device": "cpu",
        "validate#additional_metrics#copying_ratio#num_samples": 8, "latent_network_def#num_layers": 3,
        "lr_schedule": "constant", "train#dataset#draws": 1,
    }  # fmt: skip


@pytest.fixture(scope="session")
def latent_bundle(labelled, quick_latent, tmp_path_factory):
    """A copy of the tiny bundle with a latent DDIM, trained for two short epochs."""
    from monai_diffae.apps.training.train_latent import train_latent

    folder = tmp_path_factory.mktemp("with_latent") / "bundle"
    shutil.copytree(labelled.bundle, folder)
    train_latent(folder, embeddings=labelled.embeddings, overrides=quick_latent)
    return folder


@pytest.fixture(scope="session", params=["colour", "two_modalities"])
def unusual(request, tiny_bundle, tmp_path_factory):
    """A bundle of colour pictures, or one whose encoder sees another image than the decoder draws; both untrained."""
    from monai.bundle import ConfigParser

    from monai_diffae.apps.embedding.embed import embed
    from monai_diffae.apps.synthesis.fit_direction import fit_direction

    root = tmp_path_factory.mktemp(request.param)
    colour = request.param == "colour"
    rng = np.random.default_rng(0)
    splits = ["train"] * 8 + ["val"] * 2
    table = pd.DataFrame({"id": [f"case-{i}" for i in range(10)], "wide": ["no", "yes"] * 5, "split": splits})
    for key in ("image",) if colour else ("image", "encoder_image"):
        table[key] = [f"{key}_{i}.png" for i in range(10)]
        for file in table[key]:
            pixels = rng.integers(256, size=(20, 24, 3) if colour else (20, 24), dtype=np.uint8)
            Image.fromarray(pixels).save(root / file)
    table.to_csv(root / "cohort.csv", index=False)
    bundle = shutil.copytree(tiny_bundle.directory, root / "bundle", ignore=shutil.ignore_patterns("cache"))
    second = {"image_keys": ["image", "encoder_image"], "encoder_key": "encoder_image"}
    models = bundle / "models"
    config = json.loads((models / "config.json").read_text()) | ({"in_channels": 3} if colour else second)
    (models / "config.json").write_text(json.dumps(config))
    torch.save(ConfigParser(config).get_parsed_content("network_def").state_dict(), models / "model.pt")
    _shake(models / "model.pt")
    embedded = embed(bundle, root / "cohort.csv", root / "embedded", device="cpu").path
    fit_direction(embedded, root / "wide.json", target="wide")
    return Labelled(bundle, root / "cohort.csv", embedded, root / "wide.json")


def _shake(model):
    rng = torch.Generator().manual_seed(0)
    state = torch.load(model, weights_only=True)
    shaken = {name: value + 0.05 * torch.randn(value.shape, generator=rng) for name, value in state.items()}
    head = {name: 100 * value for name, value in shaken.items() if name.startswith("encoder.head.4.")}
    assert head
    torch.save(shaken | head, model)
