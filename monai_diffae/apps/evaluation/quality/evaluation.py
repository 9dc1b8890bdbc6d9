"""The work of ``evaluate``: all tables of all bundles, measured and written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from monai_diffae.apps.evaluation.evaluate import Conditions, HeldOut, Weights
from monai_diffae.apps.evaluation.quality.bundle_parts import BundleParts, PartsOfBundles
from monai_diffae.apps.evaluation.quality.evaluated_bundle import EvaluatedBundle
from monai_diffae.apps.evaluation.quality.generated import GENERATION, FeatureNetwork
from monai_diffae.apps.evaluation.quality.journal import Journal, Row
from monai_diffae.apps.evaluation.quality.report_files import write_cases, write_markdown, write_tables
from monai_diffae.apps.evaluation.quality.summary import difference_rows, mean_rows
from monai_diffae.apps.evaluation.quality.time_left import TimeLeft
from monai_diffae.apps.processes import Process
from monai_diffae.apps.results import log_to_open_run
from monai_diffae.apps.tracking import log_to_training
from monai_diffae.data.atomic import write_json
from monai_diffae.data.progress import progress
from monai_diffae.errors import MachineError
from monai_diffae.metrics import InceptionFeatures, PerceptualDistance, RadImageNetFeatures

logger = logging.getLogger(__name__)

SUMMARY = "evaluation.json"


@dataclass
class Evaluation:
    """Evaluates bundles on the held-out cases of a cohort.

    Attributes:
        bundles: the bundles; the others are compared with the first.
        conditions: solvers, steps and numbers.
        held_out: which cases.
        weights: files of networks that judge images.
        seed: random seed of x_T and of the bootstrap.
        folder: the folder for the results.
        process: which of the processes that share the reconstructions this is.
        omitted: what could not be measured: ``bundle`` (None: all), ``metric`` and ``reason``.
    """

    bundles: Sequence[EvaluatedBundle]
    conditions: Conditions
    held_out: HeldOut
    weights: Weights
    seed: int
    folder: Path
    process: Process = field(default_factory=Process)
    omitted: list[Row] = field(default_factory=list)

    def run(self, overwrite: bool = False) -> dict[str, Any]:
        """Measure everything and write all files; in the first process.

        Args:
            overwrite: do not use what an interrupted run has measured already.

        Returns:
            The number of cases, and of those that could not be read.
        """
        parts, journal = self._prepared(overwrite)
        patients = {case.id: case.patient for each in parts for case in each.reconstructions.read.cases}
        case_rows, rows = self._measured(parts, journal)
        rows = mean_rows(case_rows, patients) + rows
        comparable = self._comparable()
        compared = [row for row in case_rows if row["bundle"] in comparable]
        differences = difference_rows(compared, self.bundles[0].name, patients)
        self._write(rows, differences, case_rows, patients)
        journal.remove()
        num_failed = max(len(each.reconstructions.read.failures) for each in parts)
        return {"num_cases": len(patients), "num_failed": num_failed, "num_omitted": len(self.omitted)}

    def measure_share(self, overwrite: bool = False) -> None:
        """Measure this process's share of the reconstructions, for the first process; in the others."""
        parts, journal = self._prepared(overwrite)
        total = sum(each.evaluations for each in parts)
        for each in parts:
            for _ in each.case_rows(journal, TimeLeft(total, lambda: None)):
                pass

    def _prepared(self, overwrite: bool) -> tuple[list[BundleParts], Journal]:
        """The parts of the bundles, and the rows that an interrupted run has measured."""
        lpips = self._lpips()
        preparation = PartsOfBundles(self.conditions, self.seed, self.folder, lpips, self._feature_networks(lpips))
        parts = [preparation.of(bundle, partial(self._omit, bundle.name)) for bundle in self.bundles]
        journal = Journal(self.folder / ".cache" / "rows.jsonl", self.process)
        if overwrite:
            journal.remove()
        return parts, journal

    def _lpips(self) -> PerceptualDistance | None:
        try:
            return PerceptualDistance(self.weights.alexnet, self.bundles[0].session.trained.device)
        except MachineError as error:
            self._omit(None, "lpips", str(error))
            return None

    def _feature_networks(self, lpips: PerceptualDistance | None) -> dict[str, FeatureNetwork]:
        """The networks for FID, KID, precision and recall for which there are weights."""
        device = self.bundles[0].session.trained.device
        networks: dict[str, FeatureNetwork] = {} if lpips is None else {"alexnet": lpips.features}
        if self.weights.radimagenet is not None:
            networks["radimagenet"] = RadImageNetFeatures(self.weights.radimagenet, device)
        try:
            networks["inception"] = InceptionFeatures(device)
        except MachineError as error:
            logger.debug("no features of Inception v3: %s", error)
        return networks

    def _measured(self, parts: Sequence[BundleParts], journal: Journal) -> tuple[list[Row], list[Row]]:
        """The rows of the cases, and those about all cases together."""
        total = sum(each.evaluations for each in parts)
        case_rows: list[Row] = []
        rows: list[Row] = []
        with progress(total, f"evaluating {', '.join(bundle.name for bundle in self.bundles)}") as advance:
            time_left = TimeLeft(total, advance)
            for each in parts:
                case_rows += each.case_rows(journal, time_left)
                rows += each.generation_rows(journal, time_left)
        for each in parts:
            rows += each.z_sem_rows()
            each.draw(self.folder)
        return case_rows, rows

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
        omission = {"bundle": bundle, "metric": metric, "reason": reason}
        if omission not in self.omitted:
            level = logging.INFO if metric == GENERATION else logging.WARNING  # most bundles have no latent DDIM
            logger.log(level, "%s%s is left out: %s", "" if bundle is None else f"{bundle}: ", metric, reason)
            self.omitted.append(omission)

    def _write(
        self, rows: list[Row], differences: list[Row], case_rows: list[Row], patients: Mapping[str, str]
    ) -> None:
        num_patients = len(set(patients.values()))
        content = {
            "bundles": [bundle.description for bundle in self.bundles],
            "rows": rows, "differences": differences, "omitted": self.omitted,
            "held_out": not self.held_out.not_held_out, "split": self.held_out.split,
            "num_cases": len(patients), "num_patients": num_patients,
            "draws": self.conditions.draws, "seed": self.seed,
        }  # fmt: skip
        tables = write_tables(self.folder, rows)
        write_cases(self.folder / "cases.csv", case_rows)
        markdown = self.folder / "tables.md"
        write_markdown(markdown, rows, self._notes(len(patients), num_patients))
        write_json(self.folder / SUMMARY, content)
        files = [*tables, markdown, *sorted(self.folder.glob("generated_*.png"))]
        log_to_open_run(_figures(rows), [*files, self.folder / SUMMARY], "evaluation")
        for bundle in self.bundles:
            own_rows = [{**row, "bundle": None} for row in rows if row["bundle"] == bundle.name]
            log_to_training(bundle.session.trained.folder, _figures(own_rows), files, "evaluation")

    def _notes(self, num_cases: int, num_patients: int) -> list[str]:
        """How the tables were measured, as sentences below each other."""
        held_out = f"{num_cases} {'' if self.held_out.not_held_out else 'held-out '}cases of {num_patients} patients"
        notes = [f"Means over {held_out} (split {self.held_out.split}), with 95 % intervals over the patients."]
        if self.held_out.not_held_out:
            notes.append("These cases may have been trained on: the figures are better than those of new cases.")
        for omission in self.omitted:
            bundle = f"{omission['bundle']}: " if omission["bundle"] and len(self.bundles) > 1 else ""
            notes.append(f"{bundle}{omission['metric']} is left out: {omission['reason']}.")
        return notes


def _figures(rows: Sequence[Row]) -> dict[str, float]:
    """The values by a name that says what they are, for MLflow."""
    names = ("bundle", "table", "solver", "steps", "features", "timestep", "metric")
    return {
        "/".join(str(row[name]) for name in names if row[name] is not None): row["value"]
        for row in rows
        if row["value"] is not None
    }
