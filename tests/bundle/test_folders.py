"""What ``init``, ``export`` and trainings write into a bundle's folder: overlays, its description, the model card."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from monai_diffae.apps.training.train import train
from monai_diffae.bundle import init_bundle
from monai_diffae.bundle.described_model import describe_model
from monai_diffae.bundle.folders import complete_bundle
from monai_diffae.bundle.model_card import NOTE, TRAINED, mark_replaced_weights
from monai_diffae.errors import ConfigError

ROOT = Path(__file__).parents[2]
ALL = {path.stem for path in (ROOT / "configs").glob("*.json")}


# -- overlays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("diffae_2d", ALL - {"latent_space", "embed_volumes", "encoder_view_3d"}),
        ("diffae_3d", {"fp32", "second_modality", "latent_space", "embed_volumes", "encoder_view_3d"}),
        ("autoencoder_kl_3d", {"fp32"}),
    ],
)
def test_init_copies_the_overlays_that_fit(name, expected, tmp_path):
    directory = init_bundle(tmp_path / "new", name)
    assert {path.stem for path in (directory / "configs" / "overlays").iterdir()} == expected


@pytest.mark.parametrize(
    ("name", "overlay", "overrides", "message"),
    [
        ("diffae_3d", "ct", {}, r"spacing_mm is \[1.5, 1.5, 1.5\], but spatial_dims is 2; give 2 numbers, or omit the"),
        ("diffae_3d", None, {"image_size": [64, 64]}, r"image_size is \[64, 64\], but spatial_dims is 3; give 3"),
    ],
)
def test_values_of_another_dimension_are_one_line(name, overlay, overrides, message, tmp_path):
    directory = init_bundle(tmp_path / "new", name)
    overlays = [] if overlay is None else [ROOT / "configs" / f"{overlay}.json"]
    with pytest.raises(ConfigError, match=f"^{message}"):
        train(directory, tmp_path / "scans", overlays=overlays, overrides={"device": "cpu", **overrides})


# -- ``inference.json`` describes the trained model --------------------------------------------------------------------


def read(file):
    return json.loads(file.read_text())


def inference(bundle):
    return bundle / "configs" / "inference.json"


def test_keys_of_the_user_stay_and_nothing_is_written_twice(bundle, caplog):
    file = inference(bundle)
    file.write_text(json.dumps(read(file) | {"limit": 3, "mine": "text", "z_channels": 5}))
    describe_model(bundle)
    assert [read(file)[key] for key in ("limit", "mine", "z_channels")] == [3, "text", 8]
    first = file.stat().st_ino
    describe_model(bundle)
    assert file.stat().st_ino == first
    file.write_text("{")
    describe_model(bundle)
    assert file.read_text() == "{"
    assert "inference.json: cannot be read" in caplog.text


# -- the model card belongs to certain weights -------------------------------------------------------------------------


def figures(bundle):
    return read(bundle / "configs" / "metadata.json")["eval_metrics"]


@pytest.fixture
def shipped(tmp_path):
    return init_bundle(tmp_path / "shipped", "hippocampus")


def test_a_card_is_marked_once_and_its_figures_leave_the_metadata(shipped, bundle):
    card = shipped / "docs" / "README.md"
    heading, _, rest = card.read_text().partition("\n")
    assert figures(shipped)
    for _ in range(2):
        mark_replaced_weights(shipped)
        assert card.read_text() == f"{heading}\n\n{NOTE}\n{rest}"
        assert figures(shipped) == {}


def test_a_card_that_says_there_are_no_weights_says_that_those_of_a_training_are_not_described(tmp_path):
    bundle = init_bundle(tmp_path / "new")
    card, metadata = bundle / "docs" / "README.md", (bundle / "configs" / "metadata.json").read_bytes()
    before = card.read_text()
    for _ in range(2):
        mark_replaced_weights(bundle)
        changed = "The bundle has no weights: it is trained on the user's own images."
        assert card.read_text() == before.replace(changed, TRAINED) != before
    assert (bundle / "configs" / "metadata.json").read_bytes() == metadata


def test_the_card_of_a_copy_belongs_to_the_same_weights_only(shipped, tmp_path):
    weights = torch.load(shipped / "models" / "model.pt", weights_only=True)
    for name in ("same", "trained"):
        (tmp_path / name / "models").mkdir(parents=True)
    shutil.copy(shipped / "models" / "model.pt", tmp_path / "same" / "models")
    torch.save({key: value * 2 for key, value in weights.items()}, tmp_path / "trained" / "models" / "model.pt")
    for name in ("same", "trained"):
        complete_bundle(shipped, tmp_path / name)
    assert figures(tmp_path / "same") == figures(shipped) != {}
    assert figures(tmp_path / "trained") == {}
    assert NOTE in (tmp_path / "trained" / "docs" / "README.md").read_text()
    assert NOTE not in (shipped / "docs" / "README.md").read_text()
