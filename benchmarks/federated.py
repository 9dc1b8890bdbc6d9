"""Two hospitals with different scans: each alone, both by federated averaging, and one training on all scans.

    python benchmarks/federated.py COHORT --out OUT [--label label --shares 0.9 0.1] [--size 32] [--rounds 8]

COHORT is a table with the columns image, patient and a label of two classes; patients are divided between the hospitals
so that the given shares of their scans have the second class. A quarter of all patients is held out of every training,
with both classes. Each hospital is a site of MONAI's federated client (``MonaiAlgo``) with ``configs/federated.json``,
in this process, one after the other; the server averages their weights by the number of their steps. Every training
has the same number of epochs on its own scans, the same schedule and the same seed. The loss on the held-out scans has
fixed noise, and a 95 % interval from a bootstrap over the patients. Prints a table, which is also OUT/federated.csv.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject

from monai_diffae.bundle import init_bundle

FILES = ["configs/train.json", "configs/federated.json"]
Weights = dict[str, torch.Tensor]


def divided(table: pd.DataFrame, label: str, shares: Sequence[float], seed: int) -> list[pd.DataFrame]:
    """The held-out scans and those of each hospital; no patient is in two of them."""
    generator = np.random.default_rng(seed)
    second = sorted(table[label].unique())[1]
    patients = table.groupby("patient")[label].first().sample(frac=1, random_state=seed) == second
    held_out = patients.iloc[: len(patients) // 4]
    rest = patients.iloc[len(patients) // 4 :]
    # so many patients that each class has enough for both hospitals
    total = sum(shares), sum(1 - share for share in shares)
    size = int(min(rest.sum() / total[0], (~rest).sum() / total[1]))
    names = {True: generator.permutation(rest.index[rest]), False: generator.permutation(rest.index[~rest])}
    parts, taken = [table[table["patient"].isin(held_out.index)]], {True: 0, False: 0}
    for share in shares:
        own: list[str] = []
        for kind, count in ((True, round(size * share)), (False, round(size * (1 - share)))):
            own += list(names[kind][taken[kind] : taken[kind] + count])
            taken[kind] += count
        parts.append(table[table["patient"].isin(own)])
    return parts


def site(folder: Path, table: pd.DataFrame, arguments: argparse.Namespace) -> MonaiAlgo:
    """MONAI's client of a hospital, ready to train."""
    folder.mkdir(parents=True)
    table.to_csv(folder / "cohort.csv", index=False)
    bundle = init_bundle(folder / "bundle", "diffae_2d")
    settings = {
        "bundle_root": str(bundle), "dataset_dir": str(folder / "cohort.csv"), "num_rounds": arguments.rounds,
        "test_fraction": 0.0, "image_size": [arguments.size] * 2, "base_channels": 16, "channel_mult": [1, 2, 4],
        "z_channels": 64, "z_grid": 2, "batch_size": 16, "learning_rate": 2e-3, "ema_decay": 0.99,
        "check_memory": False, "val_interval": 1000, "val_batch_size": 128, "colour": "grey",
    }  # fmt: skip
    settings |= json.loads(arguments.settings)
    algo = MonaiAlgo(
        str(bundle), arguments.epochs, send_weight_diff=False,
        config_train_filename=FILES, train_kwargs=settings, config_evaluate_filename=FILES, eval_kwargs=dict(settings),
    )  # fmt: skip
    algo.initialize({ExtraItems.CLIENT_NAME: folder.name})
    return algo


def average_of_site(algo: MonaiAlgo) -> Weights:
    """The exponential moving average of a site's weights, which it keeps for itself."""
    state: Weights = algo.train_workflow.parser.get_parsed_content("ema").network.state_dict()
    return state


def averaged(states: Sequence[Weights], sizes: Sequence[float]) -> Weights:
    return {
        key: sum(state[key] * size for state, size in zip(states, sizes, strict=True)) / sum(sizes) for key in states[0]
    }


def trained(sites: Sequence[MonaiAlgo], start: Weights, num_rounds: int) -> Weights:
    """The weights after federated averaging; with one site, this is an ordinary training."""
    weights = start
    for number in range(num_rounds):
        states, steps = [], []
        for each in sites:
            each.train(ExchangeObject(weights=dict(weights)))
            sent = each.get_weights()
            states.append({key: value.clone() for key, value in sent.weights.items()})
            steps.append(sent.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS])
        weights = averaged(states, steps)
        print(f"round {number + 1} of {num_rounds}", flush=True)
    return weights


class HeldOutLosses:
    """The losses of the held-out scans, one by one, by the evaluator of a site that has only them."""

    def __init__(self, algo: MonaiAlgo, patients: dict[str, str]) -> None:
        self.algo, self.patients = algo, patients
        self.rows: list[tuple[str, float]] = []
        algo.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._keep)

    def _keep(self, engine: Any) -> None:
        ids = [self.patients[str(each)] for each in engine.state.batch["id"]]
        self.rows += zip(ids, engine.state.output["loss"].tolist(), strict=True)

    def __call__(self, weights: Weights) -> dict[str, float]:
        """The mean, its 95 % interval, and how much the decoder uses z_sem."""
        self.rows = []
        metrics = self.algo.evaluate(ExchangeObject(weights=dict(weights))).metrics
        by_patient = pd.DataFrame(self.rows, columns=["patient", "loss"]).groupby("patient")["loss"]
        sums, counts = by_patient.sum().to_numpy(), by_patient.count().to_numpy()
        draws = np.random.default_rng(0).integers(len(sums), size=(1000, len(sums)))
        low, high = np.quantile(sums[draws].sum(axis=1) / counts[draws].sum(axis=1), [0.025, 0.975])
        figures = {"held_out_loss": sums.sum() / counts.sum(), "low": low, "high": high}
        return {name: round(float(value), 4) for name, value in figures.items()} | {
            "z_sem_usage": round(float(metrics["z_sem_usage"]), 3)
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--label", default="label")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.9, 0.1])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3, help="epochs per round")
    parser.add_argument("--patients", type=int, default=None, help="use at most so many patients")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", default="{}", help="values of the configuration, as JSON")
    arguments = parser.parse_args()
    table = pd.read_csv(arguments.cohort)
    table["image"] = [str((arguments.cohort.parent / image).resolve()) for image in table["image"]]
    table["id"] = [f"scan-{i}" for i in range(len(table))]
    if arguments.patients is not None:
        some = table["patient"].drop_duplicates().sample(arguments.patients, random_state=arguments.seed)
        table = table[table["patient"].isin(some)]
    held_out, *hospitals = divided(table, arguments.label, arguments.shares, arguments.seed)
    split = held_out.assign(split="val").sort_values("patient")
    split.iloc[:1, split.columns.get_loc("split")] = "train"  # a cohort needs training cases, which nobody uses
    patients = dict(zip(table["id"], table["patient"], strict=True))
    evaluate = HeldOutLosses(site(arguments.out / "held_out", split, arguments), patients)
    make = {
        **{f"hospital {i + 1} alone": [scans] for i, scans in enumerate(hospitals)},
        "federated": hospitals,
        "all scans in one place": [pd.concat(hospitals)],
    }
    rows = []
    start: Weights | None = None
    for name, tables in make.items():
        folder = arguments.out / name.replace(" ", "_")
        sites = [site(folder / str(i), scans, arguments) for i, scans in enumerate(tables)]
        start = start or {key: value.clone() for key, value in sites[0].trainer.network.state_dict().items()}
        weights = trained(sites, start, arguments.rounds)
        scans = pd.concat(tables)
        facts = {
            "scans": len(scans), "patients": scans["patient"].nunique(),
            "share_of_second_class": round(float((scans[arguments.label] == table[arguments.label].max()).mean()), 3),
        }  # fmt: skip
        rows.append({"training": name, **facts, **evaluate(weights)})
        if name == "federated":
            means = averaged([average_of_site(each) for each in sites], [len(each) for each in tables])
            rows.append({"training": "federated, moving averages", **facts, **evaluate(means)})
        print(rows[-1], flush=True)
        pd.DataFrame(rows).to_csv(arguments.out / "federated.csv", index=False)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
