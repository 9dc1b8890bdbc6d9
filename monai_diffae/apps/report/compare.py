"""The command ``compare``: the page of ``report`` for several models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_diffae.apps.command import command
from monai_diffae.apps.report.report import ReportResult
from monai_diffae.errors import ConfigError


@dataclass(frozen=True)
class CompareResult(ReportResult):
    """The result of :func:`compare`; see :class:`~monai_diffae.apps.report.report.ReportResult`."""

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "compare.html"


@command
def compare(
    out: Path,
    *,
    bundle: Sequence[Path],
    cohort: Path | None = None,
    targets: Sequence[str] = (),
    embed: bool = False,
    device: str | None = None,
    overwrite: bool = False,
) -> CompareResult:
    """Show what several models have learnt, on one page: curves, the same cases, quality, maps, probes side by side.

    ``out/compare.html`` is a page like that of ``report``. All models see the same cases, and ``evaluate`` compares
    them with the first one, case by case. The commands' results are in ``out``, in one folder per model.

    Args:
        out: Folder for the page and all results.
        bundle: Folders of two or more trained bundles; the others are compared with the first.
        cohort: Folder, CSV/TSV or MONAI datalist; by default only the trainings are compared.
        targets: Label columns to predict; by default those that are found.
        embed: Copy all pictures into the page, which can then be sent as a single file of less than 15 MB.
        device: Where to compute, e.g. ``cpu`` or ``cuda:1``; by default the GPU if there is one.
        overwrite: Replace existing results.

    Returns:
        The folder, and the outcome of each step.

    Raises:
        ConfigError: there are fewer than two bundles, one is not trained, or a target is no label.

    Example:
        >>> compare("out", bundle=["model"])
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: bundle: one model cannot be compared; give two or more, or use report
    """
    if len(bundle) < 2:
        raise ConfigError("bundle: one model cannot be compared; give two or more, or use report")
    from monai_diffae.apps.report.comparison import Comparison
    from monai_diffae.apps.report.writing import write_report

    comparison = Comparison.of(bundle, out, cohort, targets=targets, device=device, overwrite=overwrite)
    comparison.run()
    comparison.make_pictures()
    result = CompareResult(out, comparison.steps.outcomes)
    write_report(result.page, comparison.page, is_embedded=embed)
    return result
