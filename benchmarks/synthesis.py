"""What a trained bundle's edits, grades and samples are worth: the figures of docs/synthesis.md.

    python benchmarks/synthesis.py BUNDLE COHORT.csv --column image=file --target label --embeddings embeddings.parquet
        --direction sick.json --out results/ [--num-cases 64 --num-samples 500]

With a trained bundle that has a latent DDIM, on patients that neither it nor the direction was fitted to:

- edits: a classifier of the images, of the encoder's shape but trained on the labels of the training images alone,
  judges held-out cases that were edited from -3 to 3. In how many its probability rises from each amount to the next,
  along the direction's pattern and along its weight, beside the same for the direction's own prediction.
- severity: AUROC or R2 of the signed distance on each split, 95 % intervals over patients.
- samples: energy distance of sampled z_sem to held-out z_sem, against that of a Gaussian fitted to the training z_sem,
  the interval of their difference, and the permutation test of each; how near samples come to training cases, held-out
  cases being 1, in z_sem and in the pixels of decoded images.

It writes edits.csv, samples.csv and summary.json, and prints the summary.
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

from monai_diffae.apps.session import OpenedCohort, open_cohort, read_cases
from monai_diffae.apps.synthesis.fit_direction import grade, read_direction
from monai_diffae.bundle.latent_ddim import load_latent
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.latents import (
    LatentStatistics,
    copying_ratio,
    difference_interval,
    energy_distance,
    permutation_test,
    score_with_interval,
)
from monai_diffae.latents.directions import Along
from monai_diffae.networks import SemanticEncoder

AMOUNTS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


def images_of(opened: OpenedCohort, split: str, target: str, out: Path) -> tuple[Tensor, Tensor]:
    """A split's images (N, C, *S) and labels (N,), those with one."""
    cases = [case for case in opened.choose(split=split) if case.labels.get(target) is not None]
    read = read_cases(opened.cohort, opened.trained, out, only=cases)
    images = torch.stack([read.dataset[i]["image"] for i in range(len(read.cases))])
    return images, torch.tensor([float(case.labels[target]) for case in read.cases])  # type: ignore[arg-type]


@torch.enable_grad()
def train_classifier(opened: OpenedCohort, target: str, out: Path, epochs: int, seed: int) -> tuple[nn.Module, float]:
    """A network of the encoder's shape, trained on the labels; and its AUROC on the test split."""
    torch.manual_seed(seed)
    images, labels = images_of(opened, "train", target, out)
    config = opened.trained.network.unet.config
    network = SemanticEncoder(
        spatial_dims=config["spatial_dims"], in_channels=config["in_channels"], z_channels=1,
        base_channels=config["base_channels"], channel_mult=config["channel_mult"], num_res_blocks=1,
    )  # fmt: skip
    steps = epochs * (len(images) // 32)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    balance = (1 - labels).sum() / labels.sum()
    for _ in range(steps):
        chosen = torch.randint(len(images), (32,))
        batch = torch.where(torch.rand(32, 1, 1, 1) < 0.5, images[chosen].flip(-1), images[chosen])
        loss = nn.functional.binary_cross_entropy_with_logits(network(batch)[:, 0], labels[chosen], pos_weight=balance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    images, labels = images_of(opened, "test", target, out)
    with torch.no_grad():
        said = torch.cat([network(batch)[:, 0] for batch in images.split(64)])
    return network, score_with_interval("auroc", labels.numpy(), said.numpy())[0]


@torch.no_grad()
def measure_edits(opened: OpenedCohort, args: argparse.Namespace) -> dict[str, Any]:
    direction = read_direction(args.direction)
    classifier, auroc = train_classifier(opened, args.target, args.out, args.epochs, args.seed)
    rows = []
    alongs: tuple[Along, ...] = ("pattern", "weight")
    test = opened.choose(split="test")
    chosen = [test[i] for i in np.linspace(0, len(test) - 1, min(args.num_cases, len(test))).astype(int)]
    for number, coded in enumerate(opened.coded(opened.read(chosen, args.out), f"editing {len(chosen)} cases")):
        for along in alongs:
            z = np.concatenate([direction.move(coded.z_sem.numpy(), amount, along) for amount in AMOUNTS])
            images = opened.decode(torch.from_numpy(z), coded.x_T)
            again = opened.trained.inferer.encode(images, opened.trained.network).numpy()
            said, own = classifier(images)[:, 0].numpy(), direction.distance(again)
            mse = (images - images[AMOUNTS.index(0)]).square().flatten(1).mean(dim=1).numpy()
            rows += [
                {"case": number, "along": along, "amount": a, "logit": x, "distance": d, "mse": m}
                for a, x, d, m in zip(AMOUNTS, said, own, mse, strict=True)
            ]
    table = pd.DataFrame(rows)
    table.to_csv(args.out / "edits.csv", index=False)
    found: dict[str, Any] = {"classifier_auroc": auroc, "num_cases": len(chosen)}
    for along, group in table.groupby("along"):
        logits, distances, mse = (
            group.pivot(index="case", columns="amount", values=name).to_numpy() for name in ("logit", "distance", "mse")
        )
        probabilities = 1 / (1 + np.exp(-logits))
        found[str(along)] = {
            # where a probability is within a hundredth of 0 or 1 already, it may go up and down in the last digits
            "monotone_within_.01": float((np.diff(probabilities) > -0.01).all(axis=1).mean()),
            "monotone_strictly": float((np.diff(probabilities) > 0).all(axis=1).mean()),
            "median_rise": float(np.median(probabilities[:, -1] - probabilities[:, 0])),
            "monotone_own_distance": float((np.diff(distances) > 0).all(axis=1).mean()),
            "probability_by_amount": probabilities.mean(axis=0).round(4).tolist(),
            "mse_at_ends": float(mse[:, [0, -1]].mean()),
        }
    return found


def measure_severity(opened: OpenedCohort, args: argparse.Namespace) -> dict[str, Any]:
    return grade(args.embeddings, args.direction, args.out / "grades.csv", overwrite=True).scores


@torch.no_grad()
def measure_samples(opened: OpenedCohort, args: argparse.Namespace) -> dict[str, Any]:
    table = read_embeddings(args.embeddings)
    z, split = z_matrix(table), table["split"].to_numpy()
    statistics = LatentStatistics.of(z[split == "train"])
    train, held_out = statistics.normalise(z[split == "train"]), statistics.normalise(z[split != "train"])
    latent = load_latent(args.bundle, "cpu")
    z_sem = latent.inferer.sample(latent.network, args.num_samples, seed=args.seed)
    samples = statistics.normalise(z_sem.numpy())
    generator = np.random.default_rng(args.seed)
    gaussian = generator.multivariate_normal(train.mean(axis=0), np.cov(train.T), args.num_samples).astype(np.float32)
    interval = difference_interval(held_out, samples, gaussian, num=500, seed=args.seed)
    found: dict[str, Any] = {
        "num_samples": args.num_samples, "num_held_out": len(held_out),
        "energy_distance": energy_distance(samples, held_out),
        "energy_distance_gaussian": energy_distance(gaussian, held_out),
        "difference": [interval.value, interval.low, interval.high],
        "copying_ratio": copying_ratio(samples, train, held_out),
        "copying_ratio_gaussian": copying_ratio(gaussian, train, held_out),
    }  # fmt: skip
    for name, values in {"latent_ddim": samples, "gaussian": gaussian}.items():
        test = permutation_test("energy", values, held_out, num=500, seed=args.seed)
        found[f"permutation_{name}"] = [test.value, test.p_value, test.null_low, test.null_high]
    count = min(args.num_images, args.num_samples)
    images_train, _ = images_of(opened, "train", args.target, args.out)
    images_test, _ = images_of(opened, "test", args.target, args.out)
    x_T = image_noise(tuple(images_train.shape[1:]), args.seed, list(range(count)))
    decoded = opened.decode(z_sem[:count], x_T)
    pixels = [images.flatten(1).numpy() for images in (decoded, images_train, images_test)]
    found["copying_ratio_pixels"] = copying_ratio(*pixels)
    pd.DataFrame({k: [json.dumps(v)] for k, v in found.items()}).to_csv(args.out / "samples.csv", index=False)
    return found


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
    opened = open_cohort(args.bundle, args.cohort, device="cpu", columns=columns)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "edits": partial(measure_edits, opened, args),
        "severity": partial(measure_severity, opened, args),
        "samples": partial(measure_samples, opened, args),
    }
    file = args.out / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {}
    for name in args.part or parts:
        summary[name] = parts[name]()
        file.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
