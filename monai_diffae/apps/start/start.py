"""The command ``start``: from a folder of scans to a model, a table, a probe and pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.settings import NONE_GIVEN, Columns
from monai_diffae.apps.step_results import StepsResult


@dataclass(frozen=True)
class StartResult(StepsResult):
    """The result of :func:`start`.

    Attributes:
        folder: holds the model, the results of every step and ``index.html``.
        outcomes: the commands that were run, with their results; empty: the user did not agree to start.
        next_lines: what can be done next: an explanation, and the line for a shell.
    """

    next_lines: Sequence[tuple[str, str]] = ()

    @property
    def page(self) -> Path:
        """The page with everything."""
        return self.folder / "index.html"

    def lines(self) -> Iterator[str]:
        """The results in short, the page, and what can be done next; if the user did not agree, only that."""
        if not self.outcomes:
            yield "not started: nothing was trained"
            return
        yield from self.step_lines()
        yield f"open {self.page}"
        for explanation, line in self.next_lines:
            yield f"{explanation}\n  {line}"

    def figures(self) -> dict[str, Any]:
        """The figures of every step."""
        return {
            "folder": str(self.folder),
            "page": str(self.page),
            "steps": [
                {
                    "command": outcome.step.line,
                    "seconds": round(outcome.seconds, 1),
                    "error": outcome.error,
                    "figures": None if outcome.result is None else outcome.result.figures(),
                }
                for outcome in self.outcomes
            ],
        }


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
) -> StartResult:
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
        The folder, and the outcome of each step.

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
    from monai_diffae.apps.start.first_hour import FirstHour
    from monai_diffae.apps.start.page import write_page

    listing = {
        "table": table, "id_column": id_column, "patient_pattern": patient_pattern, "columns": columns or None,
    }  # fmt: skip
    hour = FirstHour(cohort, out, minutes, targets, {k: v for k, v in listing.items() if v is not None}, device)
    hour.look()
    about = list(hour.about())
    for line in about:
        print(line, file=sys.stderr)
    if not yes and sys.stdin.isatty() and not _agreed():
        return StartResult(out)
    next_lines = hour.run()
    result = StartResult(out, hour.steps.outcomes, next_lines)
    about = [*about, *hour.verdict()]
    write_page(result.page, f"The first hour with {cohort.name}", about, hour.steps.with_earlier(), next_lines)
    return result


def _agreed() -> bool:
    return input("Start? [Y/n] ").strip().lower() in ("", "y", "yes")
