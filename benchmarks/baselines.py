"""What z_sem is worth beside other features of the same scans: the tables of docs/probes.md and docs/volumes.md.

    python benchmarks/baselines.py BUNDLE COHORT --target label [--target ...] --minutes 30 --out results/
        [--column image=file] [--imagenet alexnet.pth]

All are scored on cases that neither the trained bundle nor any baseline was trained on, by the same probes in the same
folds:

- MONAI's AutoencoderKL with as many latent values as z_sem has, or the nearest number above, trained for ``--minutes``
  of processor time on images augmented as in the bundle's configs/train.json, without overlays. Say what the bundle's
  training took (``/usr/bin/time``).
- a network of the encoder's shape, trained on the labels of the training cases: the epoch that is best on ``val``,
  in ``--supervised-minutes``. Its features are its outputs.
- the encoder before any training; the pixels themselves, their principal components, their intensity statistics.
- with ``--imagenet``, 2D only: AlexNet's convolutions, each averaged over the image at 224 x 224, with weights from
  ImageNet in torchvision's file.

One thread each, so that processor time is comparable. It writes the features as tables and all that
``monai-diffae probe`` writes, and resumes after a stop with the features that are stored.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.evaluation.probe import probe
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Reading, Run
from monai_diffae.bundle.config import build
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.bundle.model_file import checksum
from monai_diffae.data.atomic import write_atomic, write_json
from monai_diffae.data.cached import CachedCases
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.engines import training_loader
from monai_diffae.engines.first_stage import kl_divergence
from monai_diffae.engines.precision import autocast, resolve_precision
from monai_diffae.latents.probing.scores import score_with_interval
from monai_diffae.latents.targets import Target, read_target
from monai_diffae.networks import SemanticEncoder

BATCH, LEARNING_RATE, KL_WEIGHT = 32, 1e-3, 1e-6
DTYPE = resolve_precision("auto", "cpu")


@dataclass
class Data:
    """The bundle, its cohort's table, and the images.

    Attributes:
        trained: the bundle.
        table: the table of z_sem, one row per case.
        images: (N, C, *S) that the decoder draws, one per row of the table.
        augmented: the training cases, with the augmentation of configs/train.json.
    """

    trained: TrainedBundle
    table: pd.DataFrame
    images: Tensor
    augmented: CachedCases

    def rows(self, split: str) -> NDArray[np.intp]:
        """Positions in the table."""
        return np.flatnonzero(self.table["split"] == split)


def open_data(bundle: Path, cohort: Path, columns: dict[str, str], out: Path) -> Data:
    """Embed the cohort and read its images."""
    table = read_embeddings(embed(bundle, cohort, out / "embedded", columns=columns, device="cpu").path)
    session = Session.open(bundle, cohort, reading=Reading(columns=columns), run=Run(device="cpu"))
    trained, images = session.trained, images_of(session, table["id"], out)
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update(trained.config)
    augmentation = parser.get_parsed_content("augmentation")
    augmented = CachedCases(session.cohort.items("train"), trained.preprocessing, augmentation)
    return Data(trained, table, images, augmented)


def images_of(session: Session, ids: Iterable[str], out: Path) -> Tensor:
    """The images (N, C, *S) of these cases, as the bundle prepares them."""
    read = session.read(session.cohort.cases, out)
    place = {case.id: i for i, case in enumerate(read.cases)}
    return torch.stack([read.dataset[place[name]]["image"] for name in ids])


def train_for(
    network: nn.Module, data: Data, minutes: float, loss_of: Callable[[dict[str, Tensor]], Tensor],
    after_epoch: Callable[[], None] = lambda: None,
) -> tuple[int, float]:  # fmt: skip
    """Train with AdamW and a cosine learning rate for so many minutes of processor time; how many images it saw."""
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-2)
    loader = training_loader(data.augmented, BATCH)
    start = time.process_time()
    network.train()
    for step, batch in enumerate(loader, start=1):  # endless
        passed = min(1.0, (time.process_time() - start) / 60 / minutes)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, step / 100) * 0.5 * (1 + math.cos(math.pi * passed))
        with autocast("cpu", DTYPE):
            loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % len(loader) == 0 or passed == 1:
            network.eval()
            after_epoch()
            network.train()
        if passed == 1:
            break
    network.eval()
    return step * BATCH, (time.process_time() - start) / 60


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor) -> NDArray[np.float32]:
    return torch.cat([function(batch).float().flatten(1) for batch in images.split(64)]).numpy()


def train_autoencoder_kl(data: Data, minutes: float) -> AutoencoderKL:
    """An AutoencoderKL with a bottleneck of z_sem's size, trained as MONAI's tutorials do, without a discriminator."""
    size, dims = data.images.shape[2:], data.trained.z_channels
    # as deep as leaves at least 2 voxels of the shortest axis, and 4 of the longest: a grid of a few latent vectors
    levels = max(n for n in range(1, 6) if all(s % 2**n == 0 for s in size) and max(size) // 2**n >= 3)
    values = math.prod(s // 2**levels for s in size)
    channels = [16 * min(2**level, 8) for level in range(levels + 1)]
    network = AutoencoderKL(
        len(size), data.images.shape[1], data.images.shape[1], num_res_blocks=1, channels=channels,
        attention_levels=[False] * (levels + 1), latent_channels=math.ceil(dims / values), norm_num_groups=8,
        with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    )  # fmt: skip

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        images = batch["image"].as_subclass(Tensor)
        made, mean, sigma = network(images)
        return nn.functional.l1_loss(made.float(), images) + KL_WEIGHT * kl_divergence(mean, sigma).mean()

    seen, took = train_for(network, data, minutes, loss_of)
    held_out = data.images[data.rows("val")]
    made = in_batches(lambda x: network.decode(network.encode(x)[0]), held_out)
    mse = float(np.square(made - held_out.flatten(1).numpy()).mean())
    shape = tuple(network.encode(held_out[:1])[0].shape[1:])
    print(f"AutoencoderKL: latents {shape}, {seen} images in {took:.1f} min, MSE on val {mse:.4f}", flush=True)
    return network


def autoencoder_kl(data: Data, minutes: float) -> NDArray[np.float32]:
    """The latents' means of an AutoencoderKL."""
    network = train_autoencoder_kl(data, minutes)
    return in_batches(lambda x: network.encode(x)[0], data.images)


def supervised(data: Data, minutes: float, name: str) -> NDArray[np.float32]:
    """The outputs of a network of the encoder's shape that was trained on a label."""
    target = read_target(data.table[name].tolist(), name)
    outputs = 1 if target.classes is None else len(target.classes)
    network = SemanticEncoder(**{**data.trained.network.encoder.config, "z_channels": outputs})
    truth_of = dict(zip(data.table["id"].iloc[target.rows], target.values, strict=True))
    train = [truth_of[i] for i in data.table["id"].iloc[data.rows("train")] if i in truth_of]
    mean, std = np.mean(train), np.std(train)

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        has = [i in truth_of for i in batch["id"]]
        truth = torch.tensor([truth_of[i] for i in batch["id"] if i in truth_of], dtype=torch.float64)
        predicted = network(batch["image"].as_subclass(Tensor)[has]).float()
        if target.classes is None:
            loss = (predicted[:, 0] - ((truth - mean) / std).float()).square().sum()
        else:
            loss = nn.functional.cross_entropy(predicted, truth.long(), reduction="sum")
        return loss / len(has)

    best: dict[str, float | NDArray[np.float32]] = {"score": -math.inf}

    def keep_best() -> None:
        predicted = in_batches(network, data.images)
        score = validation_score(target, predicted, data.rows("val"))
        if not score <= best["score"]:  # the first may be NaN
            best.update(score=score, predicted=predicted)

    seen, took = train_for(network, data, minutes, loss_of, keep_best)
    print(f"supervised, {name}: {seen} images in {took:.1f} min, best on val {best['score']:.3f}", flush=True)
    return best["predicted"]  # type: ignore[return-value]


def validation_score(target: Target, predicted: NDArray[np.float32], rows: NDArray[np.intp]) -> float:
    """Which epoch is best: the correlation, or the mean AUROC of each class against the rest."""
    chosen = np.isin(target.rows, rows)
    truth, predicted = target.values[chosen], predicted[target.rows[chosen]]
    if target.classes is None:
        return float(np.corrcoef(truth, predicted[:, 0])[0, 1])
    shifted = predicted - predicted.max(1, keepdims=True)
    logits = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    each = [score_with_interval("auroc", truth == k, logits[:, k])[0] for k in range(len(target.classes))]
    return float(np.mean(each))


def untrained_codes(trained: TrainedBundle, images: Tensor) -> NDArray[np.float32]:
    """What the encoder gives before any training."""
    torch.manual_seed(0)
    network = build(ConfigParser(deepcopy(trained.config)), "network_def", nn.Module)
    return in_batches(network.eval().encode, images)


def imagenet(weights: Path, bundle: Path, cohort: Path, columns: dict[str, str], data: Data, out: Path) -> NDArray:
    """Each of AlexNet's five convolutions, averaged over the image at 224 x 224: 1152 features."""
    from torchvision.models import alexnet

    network = alexnet()
    network.load_state_dict(torch.load(weights, weights_only=True))
    run = Run(device="cpu", overrides={"image_size": [224, 224]})
    session = Session.open(bundle, cohort, reading=Reading(columns=columns), run=run)
    images = images_of(session, data.table["id"], out)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    low, high = session.trained.model_range

    def features(images: Tensor) -> Tensor:
        x = ((images[:, :1] - low) / (high - low) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        found = []
        for layer in network.features.eval():
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x.mean(dim=(2, 3)))
        return torch.cat(found, dim=1)

    return in_batches(features, images)


def main() -> None:
    """Train what is not there yet, probe, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--column", action="append", default=[], help="our word=the table's, such as image=file")
    parser.add_argument("--target", action="append", required=True)
    parser.add_argument("--minutes", type=float, default=30, help="of processor time, for the AutoencoderKL")
    parser.add_argument("--supervised-minutes", type=float, default=8, help="of processor time, for each target")
    parser.add_argument("--imagenet", type=Path, help="torchvision's file of AlexNet's weights")
    parser.add_argument(
        "--with-val", action="store_true",
        help="evaluate on the validation cases too, if test cases are few; they chose the supervised network's epoch",
    )  # fmt: skip
    parser.add_argument("--probe", action="append", choices=["linear", "knn", "boosting"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns = dict(pair.split("=", 1) for pair in args.column)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": checksum(args.bundle), "minutes": args.minutes, "supervised_minutes": args.supervised_minutes,
        "seed": args.seed,
    }  # fmt: skip
    record = args.out / "settings.json"
    if record.is_file() and json.loads(record.read_text()) != settings:
        parser.error(f"{args.out} holds features that were made otherwise; choose another folder")
    write_json(record, settings)
    data = open_data(args.bundle, args.cohort, columns, args.out)
    makers: dict[str, Callable[[], NDArray[np.float32]]] = {
        "AutoencoderKL": partial(autoencoder_kl, data, args.minutes),
        **{f"supervised, {name}": partial(supervised, data, args.supervised_minutes, name) for name in args.target},
        "untrained encoder": partial(untrained_codes, data.trained, data.images),
        "pixels": lambda: data.images.flatten(1).numpy(),
    }
    if args.imagenet:
        makers["ImageNet AlexNet"] = partial(imagenet, args.imagenet, args.bundle, args.cohort, columns, data, args.out)
    files = {}
    for name, make in makers.items():
        files[name] = args.out / f"{name.replace(', ', '_').replace(' ', '_')}.npy"
        if not files[name].is_file():
            torch.manual_seed(args.seed)
            write_atomic(files[name], partial(np.save, arr=make()))
    evaluated = args.out / "evaluated.parquet"
    splits = {"val": "test"} if args.with_val else {}
    table = data.table.assign(split=data.table["split"].replace(splits))
    table.attrs = data.table.attrs
    table.to_parquet(evaluated)
    rows = []
    for target in args.target:
        others = {name: np.load(file) for name, file in files.items() if not name.startswith("supervised")}
        others["supervised"] = np.load(files[f"supervised, {target}"])
        rows += probe(
            evaluated, args.out / f"probe_{target}", targets=[target], evaluation="split",
            probes=args.probe or ["linear"], baselines=others, pixel_baselines=["pca", "intensity"],
            bundle=args.bundle, cohort=args.cohort, columns=columns,
        ).rows  # fmt: skip
    printed = ["target", "features", "dims", "probe", "score", "low", "high", "difference", "difference_low",
             "difference_high", "num_test"]  # fmt: skip
    scores = pd.DataFrame(rows)[printed]
    scores.to_csv(args.out / "baselines.csv", index=False)
    print(scores.round(3).to_string(index=False))
    for target in args.target:
        few = pd.read_csv(args.out / f"probe_{target}" / "few_labels.csv")
        print(few[few["features"] != "supervised"].to_string(index=False))  # those have seen all labels


if __name__ == "__main__":
    main()
