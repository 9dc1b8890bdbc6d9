"""How many labels each strategy of ``monai_diffae.latents.selection`` saves: the figures of docs/selection.md.

    python benchmarks/active_learning.py results/embeddings.parquet --target label [--target ...] --out out/
        [--seeds 20] [--strategies random typical ...] [--most 160]

An annotator is simulated. A case is the first scan of a patient. For each seed, a third of the patients is held out,
and the others are an unlabelled pool. A strategy selects cases of the pool, in rounds of 5, later of 10 and 20. Their
labels are revealed, and they are added to the labelled cases. At 5, 10, 20, 40, 80 and 160 labelled patients, a linear
probe is fitted to them, and its AUROC (with several classes, the one-vs-rest average) or R2 on the held-out patients is
noted. It is .5 or 0 as long as all labels are the same. All strategies have the same held-out patients and pools, and
differences to ``random`` are paired by seed: mean with its 95 % interval (Student's t over the seeds).

Writes active_learning.csv (one row per target, strategy, budget and seed), differences.csv and active_learning.png.
A run that was stopped continues with the next target and strategy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.metrics import r2_score, roc_auc_score

from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.latents import LatentStatistics
from monai_diffae.latents.probing.probes import ProbeModel
from monai_diffae.latents.selection import STRATEGIES, Selection
from monai_diffae.latents.targets import Target, read_target

BUDGETS = (5, 10, 20, 40, 80, 160, 320)


def quality(z: NDArray[np.float64], target: Target, labelled: NDArray[np.intp], held: NDArray[np.intp]) -> float:
    """AUROC or R2 on the held-out cases of a linear probe that was fitted to the labelled cases."""
    num_classes = None if target.classes is None else len(target.classes)
    truth, values = target.values[held], target.values[labelled]
    if len(np.unique(values)) < 2:
        return 0.0 if num_classes is None else 0.5
    if num_classes is None:
        return float(r2_score(truth, ProbeModel("linear").fit(z[labelled], values, labelled, None).predict(z[held])))
    names, codes = np.unique(values, return_inverse=True)
    predicted = np.zeros((len(held), num_classes))  # a class without a label has no probability
    predicted[:, names] = ProbeModel("linear").fit(z[labelled], codes, labelled, len(names)).predict(z[held])
    scores = [roc_auc_score(truth == k, predicted[:, k]) for k in range(1 if num_classes == 2 else 0, num_classes)]
    return float(np.mean(scores))


def simulate(z_sem: NDArray[np.float32], target: Target, strategy: str, seed: int, most: int) -> Iterator[dict]:
    """Label a pool by a strategy, and yield the probe's quality at each budget."""
    order = np.random.default_rng(seed).permutation(len(z_sem))
    held, pool = np.sort(order[: len(order) // 3]), np.sort(order[len(order) // 3 :])
    z = LatentStatistics.of(z_sem[pool]).normalise(z_sem).astype(np.float64)
    kind = "numbers" if target.classes is None else "classes"
    labelled: list[int] = []  # positions in the pool
    while len(labelled) < min(most, len(pool)):
        size = 5 if len(labelled) < 20 else 10 if len(labelled) < 80 else 20
        labels = target.values[pool[labelled]].tolist()
        selection = Selection(z_sem[pool], labelled, labels, kind=kind, seed=seed * 1000 + len(labelled))
        labelled += selection.select(strategy, size).tolist()
        if len(labelled) in BUDGETS:
            score = quality(z, target, pool[labelled], held)
            yield {"strategy": strategy, "budget": len(labelled), "seed": seed, "score": score}


def differences(scores: pd.DataFrame) -> pd.DataFrame:
    """The mean score of each strategy and budget, and its mean difference to random choice with a 95 % interval."""
    rows = []
    for (target, budget), group in scores.groupby(["target", "budget"], sort=False):
        by_seed = group.pivot_table(index="seed", columns="strategy", values="score")
        for strategy in by_seed:
            difference = (by_seed[strategy] - by_seed["random"]).to_numpy()
            half = student.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / np.sqrt(len(difference))
            rows.append({
                "target": target, "budget": budget, "strategy": strategy, "score": by_seed[strategy].mean(),
                "difference": difference.mean(), "low": difference.mean() - half, "high": difference.mean() + half,
            })  # fmt: skip
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, metrics: dict[str, str], path: Path) -> None:
    """Draw the differences to random choice over the number of labelled patients, one panel per target."""
    figure = Figure(figsize=(4 * len(metrics), 3.6), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    strategies = [name for name in STRATEGIES if name in set(table["strategy"]) and name != "outlier"]  # far below
    for panel, (target, metric) in zip(panels, metrics.items(), strict=True):
        for i, strategy in enumerate(strategies):
            rows = table[(table["target"] == target) & (table["strategy"] == strategy)]
            if strategy == "random":
                panel.axhline(0, color="0.5", linestyle=":", label="random")
                continue
            x = rows["budget"] * 1.03 ** (i - len(strategies) / 2)  # so that intervals do not hide each other
            errors = [rows["difference"] - rows["low"], rows["high"] - rows["difference"]]
            panel.errorbar(x, rows["difference"], errors, fmt="o-", color=f"C{i}", markersize=3, label=strategy)
        ticks = sorted(set(table["budget"]))
        panel.set(xscale="log", xlabel="labelled patients", ylabel=f"{metric} minus that of random choice")
        panel.set_title(target, fontsize=10)
        panel.set_xticks(ticks, list(map(str, ticks)))
        panel.minorticks_off()
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def read_cases(embeddings: Path, target: str) -> tuple[NDArray[np.float32], Target]:
    """The first scan of each patient that has the label, and the labels."""
    table = read_embeddings(embeddings).drop_duplicates("patient")
    labels = read_target(table[target].tolist(), target)
    z_sem = z_matrix(table)[labels.rows]
    return z_sem, Target(target, labels.classes, labels.values, np.arange(len(z_sem)))


def run(embeddings: Path, targets: Sequence[str], out: Path, strategies: Sequence[str], seeds: int, most: int) -> None:
    """Simulate what is missing in the table of scores, and write all results."""
    out.mkdir(parents=True, exist_ok=True)
    file, metrics = out / "active_learning.csv", {}
    scores = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["target", "strategy"])
    for name in targets:
        z_sem, target = read_cases(embeddings, name)
        metrics[name] = "R2" if target.classes is None else "AUROC"
        for strategy in strategies:
            if ((scores["target"] == name) & (scores["strategy"] == strategy)).any():
                continue
            rows = [row for seed in range(seeds) for row in simulate(z_sem, target, strategy, seed, most)]
            scores = pd.concat([scores, pd.DataFrame(rows).assign(target=name)], ignore_index=True)
            scores.to_csv(file, index=False)
    table = differences(scores.astype({"budget": int, "seed": int}))
    table.to_csv(out / "differences.csv", index=False, float_format="%.4f")
    draw(table, metrics, out / "active_learning.png")
    for name in metrics:
        rows = table[table["target"] == name].assign(
            text=lambda x: [
                f"{r.score:.3f} ({r.difference:+.3f}: {r.low:+.3f} to {r.high:+.3f})" for r in x.itertuples()
            ]
        )
        print(f"\n{name}\n{rows.pivot(index='budget', columns='strategy', values='text').to_string()}")


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--target", action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--most", type=int, default=160)
    arguments = parser.parse_args()
    strategies = list(dict.fromkeys(["random", *arguments.strategies]))
    run(arguments.embeddings, arguments.target, arguments.out, strategies, arguments.seeds, arguments.most)


if __name__ == "__main__":
    main()
