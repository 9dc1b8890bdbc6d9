"""The command ``start``: from a folder of scans to a model, a table, a probe and pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt, Le

from monai_diffae import __version__
from monai_diffae.apps.command import command
from monai_diffae.apps.pages.report import page_result
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import NONE_GIVEN, Columns
from monai_diffae.errors import ConfigError, counted

if TYPE_CHECKING:
    import pandas as pd

    from monai_diffae.apps.steps import Outcome, Steps

_NUM_MOSAIC, _NUM_EXAMPLES = 8, 4
_FEW_PATIENTS = 10
_SLICES = {"bundle": Path("diffae_2d"), "overrides": {"slice_range": [0.2, 0.8], "slice_step": 1}}  # nearly all slices


@command
def start(
    cohort: Path,
    out: Path,
    *,
    minutes: Annotated[float, Gt(0), Le(100_000)] = 10.0,
    targets: Sequence[str] = (),
    table: Path | None = None,
    id_column: str | None = None,
    patient_pattern: str | None = None,
    columns: Columns = NONE_GIVEN,
    device: str | None = None,
    yes: bool = False,
) -> Result:
    r"""Look at scans, train a model for some minutes, and show what it learned: table, probe, neighbors, edits, page.

    Everything is done by ordinary commands, which are shown as they run and are listed on the page. The same command
    resumes after an interruption: complete steps are skipped.

    Args:
        cohort: Folder of scans, CSV/TSV or MONAI datalist. In a folder, ids are the names of the files; if these name
            patients, use the table of ``list-scans --ids hashed``.
        out: Folder for the model and all results.
        minutes: Duration of the training; the other steps take a few minutes more.
        targets: Label columns to predict, the first of them also to edit; by default those that are found.
        table: Table with labels to join to a folder, such as ``participants.csv``.
        id_column: Column of this table that names the scans, e.g. ``MRID``; by default found by its name.
        patient_pattern: Regular expression that finds the patient in the path of a scan, e.g. ``patient\d+``; by
            default each scan of a folder is a patient.
        columns: Names that a table uses for image, id, patient or split, e.g. ``image=file patient=subject``.
        device: Where to compute, e.g. ``cpu`` or ``cuda:1``; by default the GPU if there is one.
        yes: Start without asking; this is also done if nobody can answer, as in a script.

    Returns:
        The folder, the ``page``, the ``outcomes`` of all steps, and ``next_lines``: what can be done next.

    Raises:
        CohortError: no usable scan, or too few.
        ConfigError: an argument cannot be used, or ``out`` holds something else.
        MachineError: the disk is full, or the training does not fit into memory.

    Example:
        >>> start("no_such_folder", "out")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: no_such_folder: there is no such folder, table or scan; ...
    """
    listing = {
        "table": table, "id_column": id_column, "patient_pattern": patient_pattern, "columns": columns or None,
    }  # fmt: skip
    hour = FirstHour(cohort, out, minutes, targets, {k: v for k, v in listing.items() if v is not None}, device)
    hour.plan()
    summary = list(hour.summary())
    for line in summary:
        print(line, file=sys.stderr)
    if not yes and sys.stdin.isatty() and not _agreed():
        return Result(notes=["not started: nothing was trained"], content={"outcomes": ()})
    next_lines = hour.run()
    title, summary = f"The first hour with {cohort.name}", [*summary, *hour.assess()]
    page = write_start_page(out / "index.html", title, summary, hour.steps.with_earlier(), next_lines)
    return page_result(page, hour.steps.outcomes, next_lines)


def write_start_page(
    file: Path, title: str, summary: Sequence[str], outcomes: Sequence[Outcome], next_lines: Sequence[tuple[str, str]]
) -> Path:
    """Write the page: results first, then the folded preparations, and what can be done next.

    It links the pictures, which stay where the commands wrote them.
    """
    from monai_diffae.apps.pages.page import write_page

    return write_page(
        file, "start.html", title=title, summary=summary, next_lines=next_lines, version=__version__,
        results=[outcome for outcome in outcomes if not outcome.step.is_preparation],
        preparations=[outcome for outcome in outcomes if outcome.step.is_preparation],
    )  # fmt: skip


def _agreed() -> bool:
    return input("Start? [Y/n] ").strip().lower() in ("", "y", "yes")


@dataclass
class FirstHour:
    """What ``start`` does with a cohort; ``record`` is what was asked for and decided, as in ``start.json``."""

    cohort: Path
    out: Path
    minutes: float
    targets: Sequence[str]
    listing: Mapping[str, Any]
    device: str | None
    record: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def steps(self) -> Steps:
        """The commands that were run."""
        from monai_diffae.apps.steps import Steps

        return Steps(self.out / "steps.json", keeps_lines=True)

    @property
    def table(self) -> Path:
        """The table of the scans."""
        return self.out / "scans.csv"

    @property
    def model(self) -> Path:
        """The bundle's folder."""
        return self.out / "model"

    def plan(self) -> None:
        """List the scans, and plan the training unless that was done by an earlier call."""
        from monai_diffae.data.cohorts import read_cohort
        from monai_diffae.data.fingerprints import cohort_fingerprint

        listed = self._list_again() if self._record_file.is_file() else self._list()
        missing = next((name for name in self.targets if name not in listed.listing.labels), None)
        if missing is not None:
            raise ConfigError(
                f"targets: there is no label {missing!r}; there are: {', '.join(listed.listing.labels) or 'none'}"
            )
        request = {"cohort": cohort_fingerprint(read_cohort(self.table)), "minutes": self.minutes}
        self.record = self._read_record(request)
        if self.record:
            return
        colour = "grey" if listed.appearance.colour else None
        are_few = _are_few_volumes(listed)
        plan = self.steps.prepare(
            "Plan the training", "plan", cohort=self.table, minutes=self.minutes, colour=colour, device=self.device,
            **(_SLICES if are_few else {}),
        ).plan  # fmt: skip
        summary = [
            f"{counted(len(listed.listing.cases), 'scan')} of {counted(listed.listing.num_patients, 'patient')}; "
            f"labels: {', '.join(listed.listing.labels) or 'none'}",
            *(["these are few volumes, so the model is trained on their slices"] if are_few else []),
            *([plan.incomplete] if plan.incomplete else []),
            f"training of {plan.bundle}: {_size_and_length(plan.settings)}",
            *plan.time_lines(),
        ]
        self.record = {
            "request": request, "bundle": plan.bundle, "settings": plan.settings, "summary": summary,
            "is_trained": False,
        }  # fmt: skip

    def _list(self) -> Any:
        """List the scans, with twins as one patient unless they are in different splits."""
        from monai_diffae.data.inspection.twins import SeparatedTwins

        arguments = {"cohort": self.cohort, "out": self.table, **self.listing}
        try:
            return self.steps.prepare("List the scans", "list-scans", **arguments, group_duplicates=True)
        except SeparatedTwins:
            return self.steps.prepare("List the scans", "list-scans", **arguments)

    def _list_again(self) -> Any:
        """List the scans, which must be those of the earlier call."""
        try:
            return self._list()
        except ConfigError:
            if not self.table.is_file():
                raise
            raise self._other("scans or labels") from None

    @property
    def _record_file(self) -> Path:
        return self.out / "start.json"

    def _other(self, what: str) -> ConfigError:
        return ConfigError(f"{self.out.name}: holds what start made with other {what}; choose another out")

    def _read_record(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if not self._record_file.is_file():
            return {}
        record: dict[str, Any] = json.loads(self._record_file.read_text(encoding="utf-8"))
        differ = [name for name, value in request.items() if record["request"].get(name) != value]
        if differ:
            raise self._other(", ".join(differ))
        return record

    def summary(self) -> Iterator[str]:
        """What is going to be done."""
        from monai_diffae.bundle import layout

        yield from self.record["summary"]
        if self.record["is_trained"]:
            yield f"the training in {self.model} is complete"
        else:
            begun = "is resumed" if (self.model / layout.MODELS / layout.CHECKPOINT).is_file() else "begins"
            yield f"the training {begun} in {self.model}; Ctrl-C interrupts it, and the same command resumes it"
        yield f"then the scans are embedded, and the labels predicted and edited; see {self.out / 'index.html'}"

    def assess(self) -> Iterator[str]:
        """How good the model is, in short."""
        from monai_diffae.bundle.layout import model_file
        from monai_diffae.bundle.model_file import read_description
        from monai_diffae.data.progress import count_failures
        from monai_diffae.latents.representation import LEAST_USAGE

        figures = read_description(model_file(self.model)).get("figures", {})
        usage = figures.get("z_sem_usage")
        if usage is not None:
            use = "the decoder hardly uses z_sem" if usage < LEAST_USAGE else "the decoder uses z_sem"
            yield f"z_sem_usage {usage:.2f}: {use} (1: not at all)"
        num_failed = count_failures(self.model / "failures.csv")
        if num_failed:
            yield f"{num_failed} of the scans could not be used in training: {self.model / 'failures.csv'}"

    def run(self) -> list[tuple[str, str]]:
        """Train, embed, and show what was learned; return what can be done next."""
        from monai_diffae.apps.pages.data import find_targets, held_out_split
        from monai_diffae.data.embeddings import read_embeddings

        self._train()
        common = {"bundle": self.model, "cohort": self.table, "device": self.device}
        embedded = self.steps.prepare("Embed the scans", "embed", **common, out=self.out / "embeddings")
        table = read_embeddings(embedded.path)
        targets = find_targets(table, self.targets)
        if targets:
            self.steps.attempt(
                "Predict the labels", "probe", embeddings=embedded.path, out=self.out / "probe", targets=targets
            )
        edited = self._find_direction(embedded.path, table, targets)
        label = edited or next(iter(targets), None)
        cases = self._cases(table, label)
        if edited is None:
            self.steps.attempt(
                "Traverse the main directions", "traverse", bundle=self.model, embeddings=embedded.path,
                out=self.out / "traversal", device=self.device,
            )  # fmt: skip
        else:
            self.steps.attempt(
                f"Edit scans along {edited}", "edit", **common, **cases, out=self.out / "edits",
                direction=self._direction(edited), captions=[edited],
            )  # fmt: skip
        self.steps.attempt(
            "Find similar scans", "neighbors", embeddings=embedded.path, out=self.out / "neighbors", **common, **cases,
            captions=[] if label is None else [label],
        )  # fmt: skip
        self.steps.attempt(
            "Reconstruct held-out scans", "reconstruct", **common, out=self.out / "reconstructions", mode="both",
            split=held_out_split(table), limit=_NUM_MOSAIC,
        )  # fmt: skip
        return list(self._next_lines(embedded.path, targets, edited))

    def _find_direction(self, embeddings: Path, table: pd.DataFrame, targets: Sequence[str]) -> str | None:
        """The first label that z_sem predicts better than chance, as the score's interval says; None: there is none."""
        from monai_diffae.apps.pages.data import find_positive

        for target in targets:
            fitted = self.steps.attempt(
                f"Find the direction of {target}", "fit-direction", embeddings=embeddings, target=target,
                out=self._direction(target), positive=find_positive(table, target),
            )  # fmt: skip
            if fitted is not None and not fitted.direction.may_be_chance:
                return target
        return None

    def _direction(self, target: str) -> Path:
        from monai_diffae.data.cases import safe_id

        return self.out / f"{safe_id(target)}.json"

    def _cases(self, table: pd.DataFrame, target: str | None) -> dict[str, Any]:
        """The arguments that choose cases for pictures: held-out ones, from both ends of a label."""
        from monai_diffae.apps.pages.data import find_examples, held_out_split

        if target is not None and (ids := find_examples(table, target, _NUM_EXAMPLES)):
            return {"cases": ids}
        return {"split": held_out_split(table), "limit": _NUM_EXAMPLES}

    def _train(self) -> None:
        from monai_diffae.data.atomic import write_json

        write_json(self._record_file, self.record)
        if not self.model.is_dir():
            self.steps.prepare("Make a bundle", "init", out=self.model, bundle=self.record["bundle"])
        if self.record["is_trained"]:
            return
        self.steps.prepare(
            "Train", "train", bundle=self.model, cohort=self.table, device=self.device,
            overrides=self.record["settings"],
        )  # fmt: skip
        self.record["is_trained"] = True
        write_json(self._record_file, self.record)

    def _next_lines(self, embeddings: Path, targets: Sequence[str], edited: str | None) -> Iterator[tuple[str, str]]:
        from monai_diffae.apps.commands import command_line

        longer = {
            "cohort": self.table, "out": f"{self.out}_longer", "minutes": 60, "targets": list(self.targets),
            "device": self.device,
        }  # fmt: skip
        why = "Train a better model, for an hour:"
        if targets and edited is None:
            why = (
                f"z_sem predicts none of the labels ({', '.join(targets)}) clearly better than chance, so no scan is "
                f"edited along one. {why}"
            )
        yield why, command_line("start", longer)
        opened = {"bundle": self.model, "cohort": self.table}
        yield (
            "Open a page with a map of all scans, and sliders that edit them:",
            command_line("explore", {**opened, "embeddings": embeddings}),
        )
        yield (
            "Make a report to send around:",
            command_line("report", {**opened, "out": self.out / "report", "targets": list(targets)}),
        )
        if edited is not None:
            grades = {"embeddings": embeddings, "out": self.out / "grades.csv", "direction": self._direction(edited)}
            yield f"Grade every scan along {edited}:", command_line("grade", grades)
        unusual = {**opened, "out": self.out / "anomaly", "split": "val", "limit": 8}
        yield "Show what is unusual inside scans:", command_line("anomaly", unusual)


def _are_few_volumes(listed: Any) -> bool:
    """Whether a 3D model would see too few volumes, while a 2D model has many slices."""
    return listed.appearance.num_volumes > 0 and listed.listing.num_patients < _FEW_PATIENTS


def _size_and_length(settings: Mapping[str, Any]) -> str:
    """Size and length of a training in words."""
    size = " x ".join(map(str, settings["image_size"]))
    spacing = " x ".join(f"{mm:g}" for mm in settings.get("spacing_mm", ()))
    return f"images of {size}{f' voxels of {spacing} mm' if spacing else ' pixels'}, {settings['max_epochs']} epochs"
