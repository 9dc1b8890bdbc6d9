"""Whether z_sem makes denoising easier and decoding faster: the figures of docs/results.md.

    python benchmarks/conditioning.py COHORT --with with0 with1 with2 --without without0 without1 without2 --out results

``--without`` are trainings of the overlay ``unconditional.json`` with the same settings, data and seeds. On held-out
cases: the denoising loss by noise level, the images seen until a training with z_sem has the last validation loss of
the one without, and the reconstruction from the inverted x_T by network evaluations, as in the paper's Table 1. The
script writes conditioning.csv and conditioning.png, and prints the table: means over trainings, and the smallest and
the largest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from monai_diffae.apps.evaluation.evaluate import Conditions, HeldOut, evaluate
from monai_diffae.data.atomic import write_csv


def images_until(curves: pd.DataFrame, loss: float) -> float:
    """Images seen until the validation loss is at most this, between two validations by a straight line."""
    known = curves.dropna(subset="validation_loss")
    before, first = None, known[known["validation_loss"] <= loss].iloc[0]
    if (place := known.index.get_loc(first.name)) > 0:
        before = known.iloc[place - 1]
    if before is None:
        return float(first["images_seen"])
    share = (before["validation_loss"] - loss) / (before["validation_loss"] - first["validation_loss"])
    return float(before["images_seen"] + share * (first["images_seen"] - before["images_seen"]))


def main() -> None:
    """Measure, write, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--with", dest="conditional", nargs="+", type=Path, required=True)
    parser.add_argument("--without", nargs="+", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 10, 20, 50, 100])
    parser.add_argument("--limit", type=int, default=64, help="held-out cases")
    arguments = parser.parse_args()
    bundles = [*arguments.conditional, *arguments.without]
    result = evaluate(
        arguments.out / "evaluation",
        bundle=bundles,
        cohort=arguments.cohort,
        conditions=Conditions(steps=arguments.steps, draws=1),
        held_out=HeldOut(limit=arguments.limit),
    )
    rows = pd.DataFrame(result.rows)
    names = {path.name for path in arguments.conditional}
    rows["model"] = rows["bundle"].map(lambda name: "with z_sem" if name in names else "without")
    levels = rows[(rows["table"] == "noise_levels") & (rows["metric"] == "loss_own")].assign(
        x=lambda each: each["timestep"]
    )
    decoded = rows[(rows["table"] == "reconstruction") & rows["metric"].isin(["mse", "ssim"])]
    decoded = decoded.assign(x=lambda each: each["steps"])
    both = pd.concat([levels, decoded])
    table = both.groupby(["metric", "x", "model"])["value"].agg(["mean", "min", "max"]).reset_index()
    write_csv(arguments.out / "conditioning.csv", table)
    print(
        table.pivot(index=["metric", "x"], columns="model", values=["mean", "min", "max"]).to_string(
            float_format="%.4g"
        )
    )
    for conditional, without in zip(arguments.conditional, arguments.without, strict=True):
        last = pd.read_csv(without / "curves.csv")["validation_loss"].dropna().iloc[-1]
        curves = pd.read_csv(conditional / "curves.csv")
        print(
            f"{conditional.name}: loss {last:.4f} after {images_until(curves, last):,.0f} images; {without.name} after "
            f"{curves['images_seen'].max():,.0f}"
        )
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    titles = {"loss_own": "denoising loss", "mse": "MSE from both codes", "ssim": "SSIM from both codes"}
    for axis, (metric, title) in zip(axes, titles.items(), strict=True):
        for model, group in table[table["metric"] == metric].groupby("model"):
            axis.plot(group["x"], group["mean"], marker="o", label=model)
            axis.fill_between(group["x"], group["min"], group["max"], alpha=0.2)
        axis.set(title=title, xlabel="timestep (right: noise)" if metric == "loss_own" else "network evaluations")
        axis.set_xscale("linear" if metric == "loss_own" else "log")
        axis.set_yscale("log" if metric != "ssim" else "linear")
        axis.legend()
    figure.savefig(arguments.out / "conditioning.png", dpi=120)


if __name__ == "__main__":
    main()
