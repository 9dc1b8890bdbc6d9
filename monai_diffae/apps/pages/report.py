"""The command ``report``: one page about what a model has learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_diffae.apps.command import command
from monai_diffae.apps.step_results import StepsResult


@dataclass(frozen=True)
class ReportResult(StepsResult):
    """The result of :func:`report`.

    Attributes:
        folder: holds ``report.html`` and the results of every command that it shows.
        outcomes: the commands that were run, with their results.
    """

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    def lines(self) -> Iterator[str]:
        """The duration of each step, or why it was omitted; then the page."""
        yield from self.step_lines()
        yield f"open {self.page} ({self.page.stat().st_size / 1e6:.1f} MB)"

    def figures(self) -> dict[str, Any]:
        """The page, and the figures of every step."""
        steps = [
            {
                "command": outcome.step.line,
                "error": outcome.error,
                "figures": None if outcome.result is None else outcome.result.json(),
            }
            for outcome in self.outcomes
        ]
        return {"folder": str(self.folder), "page": str(self.page), "bytes": self.page.stat().st_size, "steps": steps}


@command
def report(
    bundle: Path,
    out: Path,
    *,
    cohort: Path | None = None,
    targets: Sequence[str] = (),
    embed: bool = False,
    device: str | None = None,
    overwrite: bool = False,
) -> ReportResult:
    """Show what a model has learnt, as one page: failures, training, images, a map, probes, edits, outliers.

    ``out/report.html`` opens in any browser and needs no network. Everything on it is made by ordinary commands, whose
    results are in ``out``, too; each section shows its command. The same command resumes after an interruption:
    complete steps are skipped. A step that fails is omitted, and the page says why.

    The page contains images of patients. It contains the ids of the table, but no folders and no patients' names.

    Args:
        bundle: Folder of a trained bundle.
        out: Folder for the page and all results.
        cohort: Folder, CSV/TSV or MONAI datalist; by default only the training and synthetic images are shown.
        targets: Label columns to predict; the first two are also edited; by default those that are found.
        embed: Copy all pictures into the page, which can then be sent as a single file of less than 15 MB.
        device: Where to compute, e.g. ``cpu`` or ``cuda:1``; by default the GPU if there is one.
        overwrite: Replace existing results.

    Returns:
        The folder, and the outcome of each step.

    Raises:
        ConfigError: the bundle is not trained, or a target is no label.
        CohortError: there is no such cohort.

    Example:
        >>> report("no_bundle", "out")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_bundle: there is no models/model.safetensors; train the bundle first, ...
    """
    from monai_diffae.apps.pages.data import JOURNAL, ReportData
    from monai_diffae.apps.pages.page import write_page
    from monai_diffae.apps.pages.sections import Report
    from monai_diffae.apps.steps import Steps
    from monai_diffae.apps.tracking import log_to_training
    from monai_diffae.data.cohorts import check_cohort_exists

    if cohort is not None:
        check_cohort_exists(cohort)
    steps = Steps(journal=out / JOURNAL)
    data = ReportData(bundle, out, cohort, targets=targets, device=device, overwrite=overwrite, steps=steps)
    data.run()
    result = ReportResult(out, steps.outcomes)
    write_page(result.page, "report.html", embed=embed, **Report([data]).values())
    if embed:
        log_to_training(bundle, {}, [result.page], "report", is_private=True)
    return result
