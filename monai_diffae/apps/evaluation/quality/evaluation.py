"""The work of ``evaluate``: all tables of all bundles, measured and written."""

# tested in tests/apps/evaluation/test_evaluate.py

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_diffae.apps.evaluation.evaluate import Conditions, HeldOut, Weights
from monai_diffae.apps.evaluation.quality.conditions import Condition, conditions_of
from monai_diffae.apps.evaluation.quality.evaluated_bundle import EvaluatedBundle
from monai_diffae.apps.evaluation.quality.journal import Journal, Row
from monai_diffae.apps.evaluation.quality.reconstructions import Reconstructions
from monai_diffae.apps.evaluation.quality.report_files import write_cases, write_markdown, write_tables
from monai_diffae.apps.evaluation.quality.summary import difference_rows, mean_rows
from monai_diffae.apps.evaluation.quality.time_left import TimeLeft
from monai_diffae.apps.results import log_to_open_run
from monai_diffae.apps.session import ReadCases
from monai_diffae.data.atomic import write_json
from monai_diffae.data.progress import progress
from monai_diffae.errors import MachineError
from monai_diffae.metrics import ImageQuality, PerceptualDistance

logger = logging.getLogger(__name__)

FAILURES = "evaluation_failures.csv"
SUMMARY = "evaluation.json"


@dataclass
class Evaluation:
    """Evaluates bundles on the held-out cases of a cohort.

    Attributes:
        bundles: the bundles; the others are compared with the first.
        conditions: solvers, steps and draws.
        held_out: which cases.
        weights: files of networks that judge images.
        seed: random seed of x_T.
        folder: the folder for the results.
        omitted: what could not be measured: ``bundle`` (None: all), ``metric`` and ``reason``.
    """

    bundles: Sequence[EvaluatedBundle]
    conditions: Conditions
    held_out: HeldOut
    weights: Weights
    seed: int
    folder: Path
    omitted: list[Row] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Measure everything and write all files.

        Returns:
            The number of cases, and of those that could not be read.
        """
        lpips = self._lpips()
        measured = [self._opened(bundle, lpips) for bundle in self.bundles]
        patients = {case.id: case.patient for each in measured for case in each.read.cases}
        case_rows = self._reconstructed(measured)
        rows = mean_rows(case_rows, patients, self.seed)
        comparable = self._comparable()
        differences = difference_rows(
            [row for row in case_rows if row["bundle"] in comparable], self.bundles[0].name, patients, self.seed
        )
        self._write(rows, differences, case_rows, len(patients), len(set(patients.values())))
        num_failed = max(len(each.read.failures) for each in measured)
        return {"num_cases": len(patients), "num_failed": num_failed, "num_omitted": len(self.omitted)}

    def _lpips(self) -> PerceptualDistance | None:
        try:
            return PerceptualDistance(self.weights.alexnet, self.bundles[0].session.trained.device)
        except MachineError as error:
            self._omit(None, "lpips", str(error))
            return None

    def _opened(self, bundle: EvaluatedBundle, lpips: PerceptualDistance | None) -> Reconstructions:
        trained = bundle.session.trained
        read: ReadCases = bundle.session.read(bundle.cases, self.folder, FAILURES)
        quality = ImageQuality(trained.image_shape[1:], trained.model_range, lpips)
        for metric, reason in quality.omitted().items():
            self._omit(bundle.name, metric, reason)
        return Reconstructions(bundle.name, bundle.session, read, quality, self.conditions.draws, self.seed)

    def _reconstructed(self, measured: Sequence[Reconstructions]) -> list[Row]:
        journal = Journal(self.folder / ".cache" / "rows.jsonl")
        conditions = [self._conditions_of(each) for each in measured]
        total = sum(each.evaluations(chosen) for each, chosen in zip(measured, conditions, strict=True))
        rows: list[Row] = []
        with progress(total, f"evaluating {len(measured)} bundles") as advance:
            time_left = TimeLeft(total, advance)
            for each, chosen in zip(measured, conditions, strict=True):
                rows += each.rows(chosen, journal, time_left)
        return rows

    def _conditions_of(self, measured: Reconstructions) -> list[Condition]:
        inferer = measured.session.trained.inferer
        return conditions_of(inferer, self.conditions.solvers, self.conditions.steps)

    def _comparable(self) -> set[str]:
        """The names of the bundles whose preprocessing is that of the first."""
        first, *others = self.bundles
        names = {first.name}
        for other in others:
            if differing := other.differs_from(first):
                reason = f"the preprocessing differs from that of {first.name} in {', '.join(differing)}"
                self._omit(other.name, "differences", reason)
            else:
                names.add(other.name)
        return names

    def _omit(self, bundle: str | None, metric: str, reason: str) -> None:
        logger.warning("%s%s is left out: %s", "" if bundle is None else f"{bundle}: ", metric, reason)
        self.omitted.append({"bundle": bundle, "metric": metric, "reason": reason})

    def _write(
        self, rows: list[Row], differences: list[Row], case_rows: list[Row], num_cases: int, num_patients: int
    ) -> None:
        content = {
            "bundles": [bundle.description for bundle in self.bundles],
            "rows": rows, "differences": differences, "omitted": self.omitted,
            "held_out": not self.held_out.not_held_out, "split": self.held_out.split,
            "num_cases": num_cases, "num_patients": num_patients,
            "draws": self.conditions.draws, "seed": self.seed,
        }  # fmt: skip
        tables = write_tables(self.folder, rows)
        write_cases(self.folder / "cases.csv", case_rows)
        markdown = self.folder / "tables.md"
        write_markdown(markdown, rows, self._notes(num_cases, num_patients))
        write_json(self.folder / SUMMARY, content)
        log_to_open_run(_figures(rows), [*tables, markdown, self.folder / SUMMARY], "evaluation")

    def _notes(self, num_cases: int, num_patients: int) -> list[str]:
        """How the tables were measured, as sentences below each other."""
        held_out = f"{num_cases} {'' if self.held_out.not_held_out else 'held-out '}cases of {num_patients} patients"
        notes = [f"Means over {held_out} (split {self.held_out.split}), with 95 % intervals from a bootstrap over the "
                 "patients."]  # fmt: skip
        if self.held_out.not_held_out:
            notes.append("These cases may have been trained on: the figures are better than those of new cases.")
        notes += [f"{omission['metric']} is left out: {omission['reason']}." for omission in self.omitted]
        return notes


def _figures(rows: Sequence[Row]) -> dict[str, float]:
    """The values by a name that says what they are, for MLflow."""
    return {
        "/".join(str(row[name]) for name in ("bundle", "table", "solver", "steps", "features", "timestep", "metric")
                 if row[name] is not None): row["value"]
        for row in rows
        if row["value"] is not None
    }  # fmt: skip
