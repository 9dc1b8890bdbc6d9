"""What the scores of a probe say about a label, in three short lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from monai_diffae.errors import counted
from monai_diffae.latents.harmonization import CONFOUNDED
from monai_diffae.latents.probing.probes import WIDE_NAME
from monai_diffae.latents.probing.scores import CHANCE, NAMES, is_above_chance

Row = Mapping[str, Any]

_WORTH_FINDING = {"auroc": 0.7, "r2": 0.2}  # smaller effects need far more patients
_ALPHA, _POWER = 0.05, 0.8
_SHRUNK = 0.005  # an R2 of predictions that the regularisation has shrunk to the mean


@dataclass(frozen=True)
class Verdict:
    """What a probe says about a label."""

    target: str
    #: z_sem predicts it better, like or worse than the baseline; ``predicts`` it, without a baseline; ``hardly``
    #: predicts it; or it is ``unclear``, mostly as there are too few patients
    answer: Literal["better", "like", "worse", "predicts", "hardly", "unclear"]
    sentence: str  # the answer with its figures
    advice: str  # what to do next
    against: str = ""  # the figures of the baseline, as a sentence

    @property
    def is_predicted(self) -> bool:
        """Whether z_sem predicts the label better than chance."""
        return self.answer not in ("hardly", "unclear")

    @property
    def next_step(self) -> str:
        """The advice as a sentence."""
        return f"{self.advice[0].upper()}{self.advice[1:]}."

    def lines(self) -> list[str]:
        """What, how well against the baseline, and what to do, each a line."""
        return [each for each in (self.sentence, self.against, self.next_step) if each]


def find_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """The verdict on each label, from the rows of :func:`~monai_diffae.latents.probing.evaluate_probes`."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    return [_verdict([row for row in rows if row["target"] == target], len(targets)) for target in targets]


def patients_needed(metric: str, share_of_rarest: float = 0.5, num_folds: int = 1, num_labels: int = 1) -> int:
    """Test patients with whom an AUROC of .7, or an R2 of .2, is told from chance in 80 % of the studies."""
    effect = _WORTH_FINDING[metric]
    width = stats.norm.ppf(1 - _ALPHA / 2 / num_labels) + stats.norm.ppf(_POWER)
    width *= (1 + num_folds / (num_folds - 1)) ** 0.5 if num_folds > 1 else 1
    numbers = np.arange(4, 100_000)
    if metric == "r2":
        error = 2 * np.sqrt(effect / numbers) * (1 - effect)
    else:  # Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747
        n_1, n_2 = numbers * share_of_rarest, numbers * (1 - share_of_rarest)
        q_1, q_2 = effect / (2 - effect), 2 * effect**2 / (1 + effect)
        variance = effect * (1 - effect) + (n_1 - 1) * (q_1 - effect**2) + (n_2 - 1) * (q_2 - effect**2)
        error = np.sqrt(np.maximum(variance, 0) / (n_1 * n_2))
    return int(numbers[np.argmax(width * error <= effect - CHANCE[metric])])


def _verdict(rows: Sequence[Row], num_labels: int) -> Verdict:
    row, *others = [_left_out(each) for each in rows if each["probe"] == rows[0]["probe"]]
    others = [each for each in others if each["score"] is not None]
    fails = not _predicts(row, num_labels)  # then what predicts the label comes first
    others.sort(key=lambda each: (fails and _predicts(each, num_labels), "PCA" in each["features"], each["score"]))
    baseline = others.pop() if others else None
    verdict = _without_claim(row, baseline, num_labels) if fails else _claim(row, baseline)
    better = [each for each in others if (each["difference_high"] or 0) < 0 and _predicts(each, num_labels)]
    best = max(better, key=lambda each: float(each["score"]), default=None)
    if best is not None and baseline is not None and best["score"] > baseline["score"]:
        verdict = _with_better(verdict, row, best["features"])
    if (row.get("association") or 0) >= CONFOUNDED:
        lost = f"{row['target']} is associated with {row['harmonized']} ({row['association']:.2f}), so harmonizing "
        lost = f"{verdict.sentence} But {lost}removes what both share: the score may be too low."
        advice = f"compare with probe --nuisance {row['harmonized']}; {verdict.advice}"
        answer = "unclear" if fails else verdict.answer
        verdict = replace(verdict, answer=answer, sentence=lost, advice=advice)
    return verdict


def _with_better(verdict: Verdict, row: Row, best: str) -> Verdict:
    """The verdict with the advice to use other features, which are better than z_sem."""
    how = " (probe --features wide)" if best == WIDE_NAME else ""
    if verdict.answer in ("worse", "hardly", "unclear"):  # whose advice names the baseline
        return replace(verdict, advice=f"to predict it, use {best}{how}, which predicts it best{_longer(row)}")
    return replace(verdict, advice=f"{verdict.advice}. {best} predicts it better: use it for classifiers{how}")


def _left_out(row: Row) -> Row:
    """The row with the scores on a scanner that was left out, if any was: the others may be due to the scanner."""
    if row.get("nuisance") is None:
        return row
    scores = {name: row[f"left_out_{name}"] for name in ("score", "low", "high")}
    where = f" on a {row['nuisance']} that was left out, {_score(row)} on known ones"
    unknown = dict.fromkeys(["p", "difference", "difference_low", "difference_high"])
    return {**row, **scores, **unknown, "where": where}


def _claim(row: Row, baseline: Row | None) -> Verdict:
    target, name = row["target"], row["features"]
    advice = f"predict it for new scans (predict --targets {target})"
    sentence = f"{name} predicts {target}: {_score(row)}, {_patients(row)}{_seen(row)}."
    if baseline is None or baseline["difference_low"] is None:
        return Verdict(target, "predicts", sentence, advice)
    other, against = baseline["features"], f"{baseline['features']}: {_score(baseline)}"
    if baseline["difference_low"] > 0:
        return Verdict(target, "better", sentence, advice, f"{against}, so {name} is better.")
    if baseline["difference_high"] < 0:
        advice = f"to predict it, use {other}{_longer(row)}"
        return Verdict(target, "worse", sentence, advice, f"{against}, which is better.")
    return Verdict(target, "like", sentence, f"{advice}; {other} will do as well", f"{against}, no clear difference.")


def _without_claim(row: Row, baseline: Row | None, num_labels: int) -> Verdict:
    target, metric, name, patients = row["target"], row["metric"], row["features"], _patients(row)
    effect, longer, against, shown = _WORTH_FINDING[metric], _longer(row), "", None
    if baseline is not None and _predicts(baseline, num_labels):
        against, shown = f"{baseline['features']} predicts it: {_score(baseline)}.", baseline
    elif baseline is not None:
        against = f"Nor is it clear for {baseline['features']}: {_score(baseline)}."
    share = min((row.get("num_rarest") or row["num_patients"] / 2) / row["num_patients"], 0.5)
    needed = patients_needed(metric, share, row["num_folds"], num_labels)
    is_enough = needed <= row["num_patients"]
    is_worse = shown is not None and (shown["difference_high"] or 0) < 0
    if is_worse or (is_enough and row["high"] is not None and row["high"] < effect):
        sentence = f"{name} hardly predicts {target}, if at all: {_score(row)}, {patients}."
        advice = f"perhaps the images do not show it{longer}"
        if shown is not None:
            advice = f"the images show it: use {shown['features']}{longer}"
        return Verdict(target, "hardly", sentence, advice, against)
    sentence = f"It is not clear whether {name} predicts {target}: {_score(row)}, {patients}"
    if num_labels > 1 and _predicts(row, 1):
        sentence += f"; one of {num_labels} labels can look like this by chance"
    if shown is not None:
        advice = f"the images show it: use {shown['features']}{longer}"
    elif row.get("where") and row["score"] is None:
        advice = f"collect scans of each class of {target} from at least two values of {row['nuisance']}"
    elif is_enough:
        advice = f"label more patients{longer}"
    else:
        where = "test on" if row["num_folds"] == 1 else "collect scans of"
        advice = f"{where} more patients; about {needed} show {NAMES[metric]} {effect:g}"
        advice += ", or use all by cross-validation (probe --evaluation cv)" if row["num_folds"] == 1 else ""
    return Verdict(target, "unclear", f"{sentence}.", advice, against)


def _longer(row: Row) -> str:
    return ", or train for longer" if row["features"] in ("z_sem", WIDE_NAME) else ""  # others are not trained


def _predicts(row: Row, num_labels: int) -> bool:
    return is_above_chance({**row, "low": _low(row, num_labels)}, num_labels)


def _low(row: Row, num_labels: int) -> float:
    """The lower end of the score's interval, widened for the number of labels (Bonferroni)."""
    score, low, tail = row["score"], row["low"], _ALPHA / 2
    if low is None:
        return -np.inf
    if num_labels == 1 or (row["metric"] == "auroc" and not 0 < low < score < 1):  # a perfect score
        return float(low)
    if row["metric"] == "r2":
        return float(score - (score - low) * stats.norm.ppf(1 - tail / num_labels) / stats.norm.ppf(1 - tail))
    wider, usual = stats.t.ppf([1 - tail / num_labels, 1 - tail], max(row.get("num_rarest") or 2, 2) - 1)
    return float(expit(logit(score) - (logit(score) - logit(low)) * wider / usual))


def _patients(row: Row) -> str:
    is_known = row.get("knows_patients", True)
    num_patients, test = row["num_patients"], "" if row["num_folds"] > 1 else "test "
    if is_known:
        return counted(num_patients, f"{test}patient")
    cases = f"{counted(row['num_test'], f'{test}case')} of unknown patients"
    return cases if num_patients == row["num_test"] else f"{cases}, {num_patients} without twins and second scans"


def _seen(row: Row) -> str:
    """How many of the cases the encoder has seen, in brackets; nothing if none, or if it is not known."""
    num_seen = row.get("num_seen_by_autoencoder")
    return f" (the encoder may have seen {num_seen} of the {row.get('num_test')} cases)" if num_seen else ""


def _score(row: Row) -> str:
    where = row.get("where", "")
    if row["score"] is None:
        return f"no {NAMES[row['metric']]}{where}"
    if row["metric"] == "r2" and row["high"] is not None and abs(row["score"]) < _SHRUNK > row["high"]:
        return "R2 0, as the probe predicts the mean for all"
    interval = "" if row["low"] is None else f" ({row['low']:.2f} to {row['high']:.2f})"
    p = "" if row.get("p") is None else f", p {'<' if row['p'] < 0.001 else '='} {max(row['p'], 0.001):.2g}"
    return f"{NAMES[row['metric']]} {row['score']:.2f}{interval}{p}{where}"
