"""Two hospitals with different scans: each alone, both by federated averaging, and one training on all scans.

    python benchmarks/federated.py COHORT --out OUT [--patients 15] [--seeds 0 1 2] [--label label --shares 0.9 0.1]
        [--fields-of-view 1 0.7] [--size 16] [--rounds 8] [--steps 20] [--trainings NAME ...]

COHORT is a table with the columns image, patient and a label of two classes, of which the first scan of each patient is
used. Each hospital has ``--patients`` patients, and the given share of them has the second class. With
``--fields-of-view``, its scans show only this part of each side of the image. The held-out patients (``--held-out`` of
each hospital, drawn in the same way) are in no training and the same for all seeds; a seed draws the patients of the
hospitals and the first weights.

Each hospital is a site of MONAI's federated client (``MonaiAlgo``), with ``overlays/federated.json``, in this process,
one after the other; the server averages their weights by the number of their steps. A hospital sees as many images
alone as in the federation; the training on all scans in one place sees as many as both together. ``--trainings`` can
also name federations that exchange the moving averages, or forget the moments of the optimisers at each round.

The loss on held-out scans has fixed noise and timesteps. Its 95 % intervals, and those of the paired differences to the
federation, come from a bootstrap over the held-out patients, whose losses are means over the seeds. ``best`` is the
lowest held-out loss after any round: what a training could reach if it stopped at the best moment. ``auroc``: a
logistic regression on the z_sem of the held-out scans, cross-validated over their patients, predicts the label.

Writes OUT/federated.csv and OUT/differences.csv, and prints both. If it is stopped, the same command repeats only the
training that was interrupted, and those that are missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_diffae.bundle import init_bundle
from monai_diffae.data.atomic import write_json

FILES = ["configs/train.json", "configs/overlays/federated.json"]
HOSPITAL, SCANS, FIGURES = "hospital", "scans.csv", "figures.json"
HELD_OUT_SEED = 1000
NEVER = 10**6  # epochs
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Training:
    """Whose scans are trained on, and how a federation does it."""

    hospitals: Sequence[int]
    in_one_place: bool = False
    exchanges_averages: bool = False
    keeps_moments: bool = True


TRAININGS = {
    "hospital 1 alone": Training([1]),
    "hospital 2 alone": Training([2]),
    "federated": Training([1, 2]),
    "all scans in one place": Training([1, 2], in_one_place=True),
    "federated, moving averages exchanged": Training([1, 2], exchanges_averages=True),
    "federated, moments forgotten": Training([1, 2], keeps_moments=False),
}


def drawn(table: pd.DataFrame, label: str, shares: Sequence[float], num_patients: int, seed: int) -> pd.DataFrame:
    """Patients for each hospital, of which a share has the second class; the column HOSPITAL tells whose they are."""
    classes = table.groupby("patient")[label].first().sample(frac=1, random_state=seed)
    first, second = sorted(table[label].unique())
    queues = {value: iter(classes.index[classes == value]) for value in (first, second)}
    hospital: dict[str, int] = {}
    for number, share in enumerate(shares, start=1):
        of_second = round(num_patients * share)
        for value, count in ((second, of_second), (first, num_patients - of_second)):
            patients = list(islice(queues[value], count))
            if len(patients) < count:
                raise SystemExit(f"{label}: too few patients with {value}; use fewer --patients or --held-out")
            hospital |= dict.fromkeys(patients, number)
    own = table[table["patient"].isin(hospital)]
    return own.assign(**{HOSPITAL: own["patient"].map(hospital)})


def cropped(table: pd.DataFrame, parts: Sequence[float], folder: Path) -> pd.DataFrame:
    """The table with images that show the middle of the scans: this part of each side, by hospital."""
    if min(parts) == 1:
        return table
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for image, identity, number in zip(table["image"], table["id"], table[HOSPITAL], strict=True):
        path = folder / f"{identity}_{parts[number - 1]}.png"
        if not path.is_file():
            with Image.open(image) as scan:
                margins = [round(side * (1 - parts[number - 1]) / 2) for side in scan.size]
                box = (*margins, scan.width - margins[0], scan.height - margins[1])
                scan.convert("L").crop(box).save(path)
        images.append(str(path))
    return table.assign(image=images)


def site(folder: Path, table: pd.DataFrame, steps: int, seed: int, arguments: argparse.Namespace) -> MonaiAlgo:
    """MONAI's client of a hospital, ready to train; each round is an epoch of so many steps."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    folder.mkdir(parents=True)
    table.to_csv(folder / "cohort.csv", index=False)
    bundle = init_bundle(folder / "bundle", "diffae_2d")
    settings = {
        "bundle_root": str(bundle), "dataset_dir": str(folder / "cohort.csv"), "num_rounds": arguments.rounds,
        "train#trainer#epoch_length": steps, "lr_scheduler#total_steps": steps * arguments.rounds, "seed": seed,
        "test_fraction": 0.0, "image_size": [arguments.size] * 2, "base_channels": 8, "channel_mult": [1, 2],
        "z_channels": 16, "z_grid": 2, "batch_size": 8, "learning_rate": 5e-3, "warmup_steps": 10, "ema_decay": 0.9,
        "precision": "fp32", "check_memory": False, "val_interval": NEVER, "val_batch_size": 256, "colour": "grey",
        "device": "cpu",
    }  # fmt: skip
    handlers = json.loads((bundle / FILES[0]).read_text())["train"]["handlers"]
    curves = [number for number, handler in enumerate(handlers) if handler["_target_"].endswith("TrainingCurves")]
    settings |= {f"train#handlers#{curves[0]}#_disabled_": True} | json.loads(arguments.settings)
    algo = MonaiAlgo(
        str(bundle), 1, send_weight_diff=False,
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


def trained(
    sites: Sequence[MonaiAlgo],
    start: Weights,
    training: Training,
    num_rounds: int,
    evaluate: Callable[[Weights], float],
) -> tuple[Weights, Weights, list[float]]:
    """Federated averaging; with one site, this is an ordinary training.

    Returns:
        The global weights, the mean of the sites' moving averages, and the held-out loss after each round.
    """
    weights, averages, losses = start, start, []
    for number in range(1, num_rounds + 1):
        own_weights, own_averages, steps = [], [], []
        for each in sites:
            if not training.keeps_moments:
                each.train_workflow.parser.get_parsed_content("optimizer").state.clear()
            each.train(ExchangeObject(weights=dict(weights)))
            sent = each.get_weights()
            own_weights.append({key: value.clone() for key, value in sent.weights.items()})
            own_averages.append({key: value.clone() for key, value in average_of_site(each).items()})
            steps.append(sent.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS])
        averages = averaged(own_averages, steps)
        weights = averages if training.exchanges_averages else averaged(own_weights, steps)
        losses.append(evaluate(weights))
        print(f"round {number} of {num_rounds}: {losses[-1]:.4f}", flush=True)
    return weights, averages, losses


class HeldOut:
    """The held-out scans, by the evaluator of a site that has only them."""

    def __init__(self, folder: Path, table: pd.DataFrame, unused: pd.DataFrame, arguments: argparse.Namespace) -> None:
        split = pd.concat([table.assign(split="val"), unused.assign(split="train")])  # a cohort needs training cases
        self.table = table.set_index("id")
        self.label = arguments.label
        self.algo = site(folder, split, 1, 0, arguments)
        self.rows: list[tuple[str, float]] = []
        self.z: list[torch.Tensor] = []
        self.algo.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._keep)

    def _keep(self, engine: Any) -> None:
        batch = engine.state.batch
        self.rows += zip(map(str, batch["id"]), engine.state.output["loss"].tolist(), strict=True)
        with torch.no_grad():
            self.z.append(engine.network.encode(batch["image"]))

    def loss(self, weights: Weights) -> float:
        """The mean loss with these weights."""
        self.rows, self.z = [], []
        metrics = self.algo.evaluate(ExchangeObject(weights=dict(weights))).metrics
        self.z_sem_usage = float(metrics["z_sem_usage"])
        return float(np.mean([loss for _, loss in self.rows]))

    def scans(self) -> pd.DataFrame:
        """The loss of each scan in the last evaluation, with its patient, hospital and label."""
        losses = pd.DataFrame(self.rows, columns=["id", "loss"]).set_index("id")
        return losses.join(self.table[["patient", HOSPITAL, self.label]])

    def auroc(self) -> float:
        """How well z_sem of the last evaluation predicts the label of held-out patients."""
        scans, z = self.scans(), torch.cat(self.z).double().numpy()
        truth = (scans[self.label] == scans[self.label].max()).to_numpy()
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        scores = cross_val_predict(probe, z, truth, groups=scans["patient"], cv=folds, method="decision_function")
        return float(roc_auc_score(truth, scores))


def interval(scans: pd.DataFrame) -> dict[str, float]:
    """The mean of ``loss`` over scans, with the 95 % interval from a bootstrap over patients."""
    by_patient = scans.groupby("patient")["loss"].agg(["sum", "count"])
    sums, counts = by_patient["sum"].to_numpy(), by_patient["count"].to_numpy()
    draws = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    low, high = np.quantile(sums[draws].sum(axis=1) / counts[draws].sum(axis=1), [0.025, 0.975])
    return {"mean": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high)}


def summary(out: Path, names: Sequence[str], seeds: Sequence[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per training, and one per difference of the federation to another training and place of the scans."""
    rows, losses = [], {}
    for name in names:
        folders = [folder_of(out, seed, name) for seed in seeds]
        figures = pd.DataFrame([json.loads((folder / FIGURES).read_text()) for folder in folders])
        scans = pd.concat([pd.read_csv(folder / SCANS) for folder in folders])
        losses[name] = scans.groupby("id").agg({"loss": "mean", "patient": "first", HOSPITAL: "first"})
        by_hospital = losses[name].groupby(HOSPITAL)["loss"].mean()
        loss = interval(losses[name])
        row = {"training": name, "loss": loss.pop("mean"), **loss}
        row |= {f"hospital_{number}": value for number, value in by_hospital.items()}
        row["seeds"] = " ".join(f"{value:.4f}" for value in figures["loss"])
        rows.append(row | figures.drop(columns=["loss", "losses"]).mean().to_dict())
    federated, differences = losses["federated"], []
    for name in (name for name in names if name != "federated"):
        pairs = federated.assign(loss=federated["loss"] - losses[name]["loss"])
        places = {"both": pairs} | {str(number): part for number, part in pairs.groupby(HOSPITAL)}
        for place, part in places.items():
            differences.append({"federated minus": name, "patients of hospital": place, **interval(part)})
    return pd.DataFrame(rows).round(4), pd.DataFrame(differences).round(4)


def folder_of(out: Path, seed: int, training: str) -> Path:
    return out / f"seed_{seed}" / training.replace(",", "").replace(" ", "_")


def read_cohort(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path)
    images = [str((path.parent / image).resolve()) for image in table["image"]]
    return table.assign(image=images, id=[f"scan-{i}" for i in range(len(table))])


def run(name: str, seed: int, scans: pd.DataFrame, held_out: HeldOut, arguments: argparse.Namespace) -> None:
    """Train, and write the figures and the loss of each held-out scan."""
    folder, training = folder_of(arguments.out, seed, name), TRAININGS[name]
    own = scans[scans[HOSPITAL].isin(training.hospitals)]
    tables = [own] if training.in_one_place else [part for _, part in own.groupby(HOSPITAL)]
    steps = arguments.steps * (len(training.hospitals) if training.in_one_place else 1)
    sites = [site(folder / f"site_{i}", part, steps, seed, arguments) for i, part in enumerate(tables)]
    start = {key: value.clone() for key, value in sites[0].trainer.network.state_dict().items()}
    weights, averages, losses = trained(sites, start, training, arguments.rounds, held_out.loss)
    loss_of_averages = held_out.loss(averages)
    loss = held_out.loss(weights)
    held_out.scans().to_csv(folder / SCANS)
    figures = {
        "loss": loss, "moving_averages": loss_of_averages, "steps": steps * arguments.rounds,
        "best": min(losses), "best_round": int(np.argmin(losses)) + 1,
        "z_sem_usage": held_out.z_sem_usage, "auroc": held_out.auroc(),
        "losses": losses,
    }  # fmt: skip
    write_json(folder / FIGURES, figures)
    for number in range(len(sites)):
        shutil.rmtree(folder / f"site_{number}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--label", default="label")
    parser.add_argument("--shares", type=float, nargs=2, default=[0.9, 0.1])
    parser.add_argument("--fields-of-view", type=float, nargs=2, default=[1.0, 1.0])
    parser.add_argument("--patients", type=int, default=15, help="patients of each hospital")
    parser.add_argument("--held-out", type=int, default=60, help="held-out patients of each hospital")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="steps of each hospital per round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trainings", nargs="+", choices=list(TRAININGS), default=list(TRAININGS)[:4])
    parser.add_argument("--settings", default="{}", help="values of the configuration, as JSON")
    arguments = parser.parse_args()
    table = read_cohort(arguments.cohort).drop_duplicates("patient")
    drawing = {"label": arguments.label, "shares": arguments.shares}
    held_out_scans = drawn(table, num_patients=arguments.held_out, seed=HELD_OUT_SEED, **drawing)
    rest = table[~table["patient"].isin(held_out_scans["patient"])]
    show = partial(cropped, parts=arguments.fields_of_view, folder=arguments.out / "scans")
    held_out = HeldOut(arguments.out / "held_out", show(held_out_scans), rest.head(1), arguments)
    for seed in arguments.seeds:
        scans = show(drawn(rest, num_patients=arguments.patients, seed=seed, **drawing))
        for name in arguments.trainings:
            if not (folder_of(arguments.out, seed, name) / FIGURES).is_file():
                print(f"seed {seed}: {name}", flush=True)
                run(name, seed, scans, held_out, arguments)
    figures, differences = summary(arguments.out, arguments.trainings, arguments.seeds)
    figures.to_csv(arguments.out / "federated.csv", index=False)
    differences.to_csv(arguments.out / "differences.csv", index=False)
    print(figures.to_string(index=False), differences.to_string(index=False), sep="\n\n")


if __name__ == "__main__":
    main()
