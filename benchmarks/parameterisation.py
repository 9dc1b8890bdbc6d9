"""Which recipe a short training should use: eps, v or rectified flow, over several seeds.

    python benchmarks/parameterisation.py COHORT.csv --out results.csv [--seeds 3 --steps 400 --threads 2]

Every recipe trains the same small network on the same images in the same order for the same number of steps; then,
on held-out patients: the error of z_sem-only and of inverted reconstructions, the inverted code's standard deviation,
and the AUROC of a logistic probe of a binary label. A row is written as soon as a run ends, so that the table grows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.transforms import Compose, Resized
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cohort_split import split_cohort
from monai_diffae.diffusion import DiffusionSchedule, Predictor, ddim
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.engines.precision import autocast, resolve_precision
from monai_diffae.handlers import EMA
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.networks import build_autoencoder
from monai_diffae.transforms import ReadScand, ToModelRanged

RECIPES = {
    "eps, linear (the paper's)": {"schedule": "linear_beta", "prediction": "eps"},
    "v, linear, zero terminal SNR": {"schedule": "linear_beta", "prediction": "v", "zero_terminal_snr": True},
    "v, cosine": {"schedule": "cosine", "prediction": "v"},
    "flow, uniform t": {"schedule": "rectified_flow", "prediction": "v"},
    "flow, logit-normal t": {"schedule": "rectified_flow", "prediction": "v", "timestep_sampling": "logit_normal"},
}


def load(cohort: str, columns: dict[str, str], size: int, label: str) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    splits = split_cohort(cohort, columns=columns, val_fraction=0.1, test_fraction=0.15)
    transform = Compose(
        [
            ReadScand("image", spatial_dims=2),
            ToModelRanged("image"),
            Resized("image", (size, size), mode="bilinear", anti_aliasing=True),
        ]
    )
    data = {}
    for name in ("train", "test"):
        images = CachedCases(splits.items(name), transform)
        labels = {case.id: case.labels[label] for case in splits.split(name)}
        stack = torch.stack([images[i]["image"] for i in range(len(images))])
        data[name] = (stack, np.array([labels[item["id"]] for item in images.items]))
    return data


def train(
    recipe: dict[str, object], images: torch.Tensor, seed: int, steps: int
) -> tuple[DiffusionSchedule, torch.nn.Module]:
    torch.manual_seed(seed)
    dtype = resolve_precision("auto", "cpu")
    schedule = DiffusionSchedule(clip_range=(-1, 1), **recipe)  # type: ignore[arg-type]
    network = build_autoencoder(
        2, base_channels=16, channel_mult=(1, 2, 4), num_res_blocks=1, z_channels=128, time_embed_channels=128
    )
    average = EMA(network, decay=0.995)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 50)
        x0 = images[torch.randint(len(images), (32,))]
        t, eps = schedule.sample_timesteps(32), torch.randn_like(x0)
        with autocast("cpu", dtype):
            output = network(schedule.q_sample(x0, eps, t), t, x0)
        optimizer.zero_grad()
        (output.float() - schedule.target(x0, eps, t)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update()
    return schedule, average.network


@torch.no_grad()
def measure(
    schedule: DiffusionSchedule, network: torch.nn.Module, data: dict, num_images: int = 32
) -> dict[str, float]:
    images = data["test"][0][:num_images]
    noise = image_noise(tuple(images.shape[1:]), 0, list(range(len(images))))
    row = {}
    inferer = DiffusionAutoencoderInferer(schedule)
    z_sem = inferer.encode(images, network)
    spacing = "leading" if schedule.prediction == "eps" else "trailing"

    predict = Predictor(lambda x, t: network(x, t, z_sem), schedule, (-1, 1))

    def decode(x_T: torch.Tensor, steps: int) -> torch.Tensor:
        return ddim(predict, x_T, schedule.decoding_levels(steps, spacing))

    row["z_sem only MSE, 20 steps"] = float((decode(noise, 20) - images).square().mean())
    x_T = ddim(predict, images, schedule.inversion_levels(50, spacing))
    row["inverted MSE, 50 + 50 steps"] = float((decode(x_T, 50) - images).square().mean())
    row["x_T std"] = float(x_T.std())
    z = {
        name: torch.cat([inferer.encode(b, network) for b in part[0].split(256)]).numpy() for name, part in data.items()
    }
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(z["train"], data["train"][1])
    row["AUROC"] = float(roc_auc_score(data["test"][1], probe.decision_function(z["test"])))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", help="CSV with a binary label")
    parser.add_argument("--out", type=Path, default=Path("parameterisation.csv"))
    parser.add_argument("--label", default="label")
    parser.add_argument("--column", action="append", default=[], help="our word=the table's, such as image=file")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = load(args.cohort, dict(c.split("=", 1) for c in args.column), args.size, args.label)
    rows = []
    for seed in range(args.seeds):
        for name, recipe in RECIPES.items():
            start = time.perf_counter()
            schedule, network = train(recipe, data["train"][0], seed, args.steps)
            seconds = time.perf_counter() - start
            rows.append(
                {"recipe": name, "seed": seed, "training s": round(seconds), **measure(schedule, network, data)}
            )
            print(rows[-1], flush=True)
            pd.DataFrame(rows).to_csv(args.out, index=False)
    table = pd.DataFrame(rows).groupby("recipe", sort=False).agg(["mean", "min", "max"])
    print(table.drop(columns="seed").round(5).to_string())


if __name__ == "__main__":
    main()
