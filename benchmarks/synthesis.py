"""How good edits, grades and synthetic images of a trained bundle are: the figures of docs/synthesis.md.

    python benchmarks/synthesis.py BUNDLE COHORT.csv --column image=file --target label --embeddings embeddings.parquet
        --direction sick.json --out results/ [--num-cases 64 --num-samples 500]

The bundle needs a latent DDIM. All figures are for patients that neither the model nor the direction was fitted to:

- edits: a classifier of images, with the architecture of the encoder but trained on the labels of the training images
  alone, judges held-out cases that were edited from -3 to 3. The figures are the fraction of cases in which its
  probability rises from each strength to the next, along the direction's pattern and along its weight, and the same
  for the direction's own distance.
- severity: AUROC or R2 of the signed distance on each split, with 95 % intervals over patients.
- samples: the distance of sampled z_sem to training cases, divided by that of held-out cases (one image per patient),
  compared with that of a Gaussian fitted to the training z_sem; and the same in the pixels of decoded images.

The script writes edits.csv, samples.csv and summary.json, and prints the summary.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Choice, Reading, Run, Split
from monai_diffae.apps.study.predict import predict
from monai_diffae.apps.synthesis.fit_direction import STRENGTHS, read_direction
from monai_diffae.bundle.loading import load_latent
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.latents import LatentStatistics, copying_ratio
from monai_diffae.latents.directions import Along
from monai_diffae.latents.probing import score_with_interval
from monai_diffae.networks import SemanticEncoder


def images_of(session: Session, split: Split, target: str, out: Path) -> tuple[Tensor, Tensor]:
    """Images (N, C, *S) and labels (N,) of a split's cases that have a label."""
    cases = [case for case in session.choose(Choice(split=split)) if case.labels.get(target) is not None]
    read = session.read(cases, out)
    images = torch.stack([read.dataset[i]["image"] for i in range(len(read.cases))])
    return images, torch.tensor([float(case.labels[target]) for case in read.cases])  # type: ignore[arg-type]


@torch.enable_grad()
def train_classifier(session: Session, target: str, out: Path, epochs: int, seed: int) -> tuple[nn.Module, float]:
    """Train a network with the encoder's architecture on the labels; also return its AUROC on the test split."""
    torch.manual_seed(seed)
    images, labels = images_of(session, "train", target, out)
    config = session.trained.network.unet.config
    network = SemanticEncoder(
        spatial_dims=config["spatial_dims"], in_channels=config["in_channels"], z_channels=1,
        base_channels=config["base_channels"], channel_mult=config["channel_mult"], num_res_blocks=1,
    )  # fmt: skip
    steps = epochs * (len(images) // 32)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    balance = (1 - labels).sum() / labels.sum()
    for _ in range(steps):
        rows = torch.randint(len(images), (32,))
        batch = torch.where(torch.rand(32, 1, 1, 1) < 0.5, images[rows].flip(-1), images[rows])
        loss = nn.functional.binary_cross_entropy_with_logits(network(batch)[:, 0], labels[rows], pos_weight=balance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    images, labels = images_of(session, "test", target, out)
    with torch.no_grad():
        logits = torch.cat([network(batch)[:, 0] for batch in images.split(64)])
    return network, score_with_interval("auroc", labels.numpy(), logits.numpy())[0]


@torch.no_grad()
def measure_edits(session: Session, args: argparse.Namespace) -> dict[str, Any]:
    direction, trained = read_direction(args.direction), session.trained
    classifier, auroc = train_classifier(session, args.target, args.out, args.epochs, args.seed)
    rows = []
    alongs: tuple[Along, ...] = ("pattern", "weight")
    test = session.choose(Choice(split="test"))
    cases = [test[i] for i in np.linspace(0, len(test) - 1, min(args.num_cases, len(test))).astype(int)]
    for number, opened in enumerate(session.opened(cases, args.out, "editing")):
        for along in alongs:
            z = np.concatenate([direction.move(opened.z_sem.numpy(), strength, along) for strength in STRENGTHS])
            images = opened.decode(torch.from_numpy(z))
            distances = direction.distance(trained.inferer.encode(images, trained.network).numpy())
            logits = classifier(images)[:, 0].numpy()
            mse = (images - images[STRENGTHS.index(0)]).square().flatten(1).mean(dim=1).numpy()
            rows += [
                {"case": number, "along": along, "strength": s, "logit": x, "distance": d, "mse": m}
                for s, x, d, m in zip(STRENGTHS, logits, distances, mse, strict=True)
            ]
    table = pd.DataFrame(rows)
    table.to_csv(args.out / "edits.csv", index=False)
    figures: dict[str, Any] = {"classifier_auroc": auroc, "num_cases": len(cases)}
    return figures | {str(along): figures_of_edits(group) for along, group in table.groupby("along")}


def figures_of_edits(table: pd.DataFrame) -> dict[str, Any]:
    logits, distances, mse = (
        table.pivot(index="case", columns="strength", values=name).to_numpy() for name in ("logit", "distance", "mse")
    )
    probabilities = 1 / (1 + np.exp(-logits))
    return {
        # a probability within a hundredth of 0 or 1 may go up and down in the last digits
        "monotone_within_.01": float((np.diff(probabilities) > -0.01).all(axis=1).mean()),
        "monotone_strictly": float((np.diff(probabilities) > 0).all(axis=1).mean()),
        "median_rise": float(np.median(probabilities[:, -1] - probabilities[:, 0])),
        "monotone_own_distance": float((np.diff(distances) > 0).all(axis=1).mean()),
        "probability_by_strength": probabilities.mean(axis=0).round(4).tolist(),
        "mse_at_ends": float(mse[:, [0, -1]].mean()),
    }


def measure_severity(args: argparse.Namespace) -> dict[str, Any]:
    run = Run(overwrite=True)
    predicted = predict(args.bundle, args.embeddings, args.out / "severity", labelled=args.direction, run=run)
    return dict(predicted.measured)


@torch.no_grad()
def measure_samples(session: Session, args: argparse.Namespace) -> dict[str, Any]:
    table = read_embeddings(args.embeddings)
    z, split = z_matrix(table), table["split"].to_numpy()
    statistics = LatentStatistics.of(z[split == "train"])
    is_first = ~table["patient"].duplicated().to_numpy()
    train, held_out = statistics.normalise(z[split == "train"]), statistics.normalise(z[(split != "train") & is_first])
    latent = load_latent(args.bundle, "cpu")
    z_sem = latent.inferer.sample(latent.network, args.num_samples, seed=args.seed)
    samples = statistics.normalise(z_sem.numpy())
    generator = np.random.default_rng(args.seed)
    gaussian = generator.multivariate_normal(train.mean(axis=0), np.cov(train.T), args.num_samples).astype(np.float32)
    figures: dict[str, Any] = {
        "num_samples": args.num_samples, "num_held_out": len(held_out),
        "copying_ratio": copying_ratio(samples, train, held_out),
        "copying_ratio_gaussian": copying_ratio(gaussian, train, held_out),
    }  # fmt: skip
    count = min(args.num_images, args.num_samples)
    images_train, _ = images_of(session, "train", args.target, args.out)
    images_test, _ = images_of(session, "test", args.target, args.out)
    x_T = image_noise(tuple(images_train.shape[1:]), args.seed, list(range(count)))
    decoded = session.trained.inferer.decode(z_sem[:count], session.trained.network, x_T)
    pixels = [images.flatten(1).numpy() for images in (decoded, images_train, images_test)]
    figures["copying_ratio_pixels"] = copying_ratio(*pixels)
    pd.DataFrame({k: [json.dumps(v)] for k, v in figures.items()}).to_csv(args.out / "samples.csv", index=False)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="a trained bundle's folder")
    parser.add_argument("cohort", help="CSV")
    parser.add_argument("--column", action="append", default=[], help="our word=the table's, such as image=file")
    parser.add_argument("--target", required=True, help="a label column of 0 and 1")
    parser.add_argument("--embeddings", required=True, help="embeddings.parquet of the cohort")
    parser.add_argument("--direction", required=True, help="a file of fit-direction for the target")
    parser.add_argument("--out", type=Path, default=Path("synthesis"))
    parser.add_argument("--part", choices=["edits", "severity", "samples"], action="append", help="all by default")
    parser.add_argument("--num-cases", type=int, default=64)
    parser.add_argument("--num-samples", type=int, default=500)
    parser.add_argument("--num-images", type=int, default=128, help="samples that are decoded")
    parser.add_argument("--epochs", type=int, default=8, help="of the classifier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    columns = dict(c.split("=", 1) for c in args.column)
    session = Session.open(args.bundle, args.cohort, reading=Reading(columns=columns), run=Run(device="cpu"))
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "edits": partial(measure_edits, session, args),
        "severity": partial(measure_severity, args),
        "samples": partial(measure_samples, session, args),
    }
    file = args.out / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {}
    for name in args.part or parts:
        summary[name] = parts[name]()
        file.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
