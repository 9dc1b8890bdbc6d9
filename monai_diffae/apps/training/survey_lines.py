"""The geometry of a cohort, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from monai_diffae.data.survey import Survey

_MAX_NAMES = 5  # most outliers that are listed


def survey_lines(survey: Survey) -> Iterator[str]:
    """A table of sizes, spacings and fields of view, and a line about outliers."""
    from rich.table import Table

    from monai_diffae.apps.result import table_lines

    summary = survey.summary()
    axes = "R x A x S" if survey.spatial_dims == 3 else "rows x columns"
    table = Table(axes, "5th percentile", "median", "95th percentile")
    in_mm = [("spacing (mm)", "spacing_mm"), ("field of view (mm)", "field_mm")] if survey.has_mm else []
    for name, key in (("size", "size"), *in_mm):
        table.add_row(name, *(" x ".join(f"{v:g}" for v in summary[key][p]) for p in ("p5", "p50", "p95")))
    yield from table_lines(table)
    if survey.outliers:
        names = ", ".join(survey.outliers[:_MAX_NAMES]) + (", ..." if len(survey.outliers) > _MAX_NAMES else "")
        yield f"{len(survey.outliers)} scans differ from the median by more than a factor of two: {names}"
