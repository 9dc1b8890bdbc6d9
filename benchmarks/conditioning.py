"""Whether z_sem makes denoising easier and decoding faster: the figures of docs/results.md.

    python benchmarks/conditioning.py COHORT --with with0 with1 with2 --without without0 without1 without2 --out results

``--without`` are trainings of the overlay ``unconditional.json`` with the same settings, data and seeds. On held-out
cases: the denoising loss by noise level, the images seen until a training with z_sem has the last validation loss of
the one without, and by network evaluations, as in the paper's Tables 1 and 2, the reconstruction from the inverted x_T
and the synthetic images of bundles that have a latent DDIM (``train-latent``) or need none (AlexNet's features; its
weights in TORCH_HOME). The script writes conditioning.csv and conditioning.png, and prints the table: means over
trainings, and the smallest and the largest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from monai_diffae.apps.evaluation.evaluate import Conditions, HeldOut, evaluate, unique_names
from monai_diffae.data.atomic import write_csv

METRICS = {"noise_levels": ("loss_own",), "reconstruction": ("mse", "ssim"), "generation": ("fid", "kid")}


def images_until(curves: pd.DataFrame, loss: float) -> float:
    """Images seen until the validation loss is at most this, between two validations by a straight line."""
    known = curves.dropna(subset="validation_loss")
    losses, images = known["validation_loss"].to_numpy(), known["images_seen"].to_numpy()
    reached = losses <= loss
    if not reached.any():
        return float("nan")
    first = int(reached.argmax())
    before = max(first - 1, 0)
    return float(np.interp(-loss, -losses[[before, first]], images[[before, first]]))


def main() -> None:
    """Measure, write, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--with", dest="conditional", nargs="+", type=Path, required=True)
    parser.add_argument("--without", nargs="+", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 10, 20, 50, 100])
    parser.add_argument("--limit", type=int, default=64, help="held-out cases to reconstruct")
    parser.add_argument("--images", type=int, default=128, help="synthetic images of each bundle and number of steps")
    arguments = parser.parse_args()
    bundles = [*arguments.conditional, *arguments.without]
    result = evaluate(
        arguments.out / "evaluation",
        bundle=bundles,
        cohort=arguments.cohort,
        conditions=Conditions(steps=arguments.steps, draws=1, num_images=arguments.images),
        held_out=HeldOut(limit=arguments.limit),
    )
    rows = pd.DataFrame(result.rows)
    names = set(unique_names(bundles)[: len(arguments.conditional)])
    rows["model"] = rows["bundle"].map(lambda name: "with z_sem" if name in names else "without")
    rows["x"] = rows["timestep"].fillna(rows["steps"])
    of_table = rows.apply(lambda row: row["metric"] in METRICS.get(row["table"], ()), axis=1)
    shown = rows[of_table & (rows["features"].fillna("alexnet") == "alexnet")]
    table = shown.groupby(["metric", "x", "model"])["value"].agg(["mean", "min", "max"]).reset_index()
    write_csv(arguments.out / "conditioning.csv", table)
    print(
        table.pivot(index=["metric", "x"], columns="model", values=["mean", "min", "max"]).to_string(
            float_format="%.4g"
        )
    )
    for conditional, without in zip(arguments.conditional, arguments.without, strict=True):
        own, other = (pd.read_csv(folder / "curves.csv") for folder in (without, conditional))
        last = own["validation_loss"].dropna().iloc[-1]
        print(
            f"{conditional}: loss {last:.4f} after {images_until(other, last):,.0f} images; {without} after "
            f"{images_until(own, last):,.0f}"
        )
    titles = {"loss_own": "denoising loss", "mse": "MSE from both codes", "ssim": "SSIM from both codes"}
    if "kid" in set(table["metric"]):
        titles |= {"kid": "KID of synthetic images (AlexNet)"}
    figure, axes = plt.subplots(1, len(titles), figsize=(4 * len(titles), 3.5), layout="constrained")
    for axis, (metric, title) in zip(axes, titles.items(), strict=True):
        for model, group in table[table["metric"] == metric].groupby("model"):
            axis.plot(group["x"], group["mean"], marker="o", label=model)
            axis.fill_between(group["x"], group["min"], group["max"], alpha=0.2)
        axis.set(title=title, xlabel="timestep (right: noise)" if metric == "loss_own" else "network evaluations")
        axis.set_xscale("linear" if metric == "loss_own" else "log")
        axis.set_yscale("linear" if metric in ("ssim", "kid") else "log")
        axis.legend()
    figure.savefig(arguments.out / "conditioning.png", dpi=120)


if __name__ == "__main__":
    main()
