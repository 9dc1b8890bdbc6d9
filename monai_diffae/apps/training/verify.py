"""The command ``verify``: find what is wrong with a cohort before a model is trained on it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from monai_diffae import pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result, table_lines
from monai_diffae.apps.settings import Figures, Reading
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.progress import check_any_usable
from monai_diffae.errors import ConfigError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import numpy.typing as npt

    from monai_diffae.data import cohorts, scans
    from monai_diffae.data.inspection import survey as surveys

_EXAMPLES = 3
_TABLE, _PICTURE, _READINGS = "verify.csv", "overview.png", "readings"
_COLUMNS = (
    "case_id",
    "file",
    "split",
    "verdict",
    "kind",
    "reason",
    "remedy",
    "size",
    "spacing_mm",
    "channels",
    "minimum",
    "p1",
    "median",
    "p99",
    "maximum",
    "twins",
    "sha256",
)
_MOST_THUMBNAILS = 36
_MOST_OUTLIERS = 5  # that are listed


@command
def verify(
    cohort: Path,
    out: Path | None = None,
    *,
    headers: bool = False,
    patient_pattern: str | None = None,
    reading: Reading = Reading(),
    figures: Figures = Figures(),
) -> Result:
    r"""Find what is wrong with a cohort before a model is trained on it.

    Every scan is read completely: it must be whole, finite, not constant, and of the kind of the others. Scans that can
    be read, but may not be what was measured, are doubtful: without orientation, with uneven, tilted or missing slices,
    with unusual geometry, in colour among grey scans, or with a formula for spreadsheets in their row. All scans of a
    patient or a file that is in two splits are listed as failed. Twins (scans that are identical or nearly so) are
    listed, and those in different splits count as a problem. Otherwise, a model would be tested on what it was trained
    on.

    With ``out``, ``verify.csv`` has one row per case: verdict, reason, remedy, geometry, intensities, twins and the
    SHA-256 of its files. ``overview.png`` shows this as a picture, without names. ``readings/`` keeps what was read
    as Parquet files, with small versions of the scans: a run that was stopped resumes, and later ones read only new and
    changed scans.

    Exit codes: 0 if all scans can be used, 3 if some cannot or twins are in different splits, 4 if none can be read.

    Args:
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results; by default nothing is written.
        headers: Read headers only, which is fast: damaged voxels and twins are not found.
        patient_pattern: Regular expression that finds the patient in the path of a scan, e.g. ``patient\d+``.

    Returns:
        The figures, and as ``verification`` what is wrong with each case and with the whole cohort.

    Raises:
        CohortError: no scan can be read, or the table is wrong.
        ConfigError: ``out`` holds a ``verify.csv`` that this command has not written.
        MachineError: the results cannot be written, or a worker died.
    """
    table = None if out is None else out / _TABLE
    if table is not None and table.is_file() and not table.read_bytes().startswith(",".join(_COLUMNS).encode()):
        raise ConfigError(f"{_TABLE}: already exists and was not written by verify; move it, or choose another out")
    cases = cohorts.read_cohort(cohort, columns=reading.columns, patient_pattern=patient_pattern, refuse_leaks=False)
    readings = surveys.read_cases(cases, headers, reading.workers_for(len(cases)), out and out / _READINGS)
    verification = surveys.verify_cases(readings)
    if out is not None:
        _write_table(verification, out / _TABLE)
        figures.write(out / _PICTURE, pictures.draw_cohort_overview(_overview(verification)))
    failures = surveys.list_failures(readings)
    check_any_usable(len(cases) - len(failures), failures, "scans")
    return Result(
        out,
        _figures(verification),
        [*_lines(verification)],
        _incomplete(verification),
        content={"verification": verification},
    )


# -- what is shown -----------------------------------------------------------------------------------------------------


def _lines(checked: surveys.Verification) -> Iterator[str]:
    """Counts, geometry, each kind of problem with examples, and twins."""
    counts = f"{checked.count('ok')} ok, {checked.count('doubtful')} doubtful, {checked.count('failed')} failed"
    yield f"{counted(len(checked.cases), 'scan')}: {counts}"
    if checked.survey is not None:
        yield from survey_lines(checked.survey)
    examples_of = {finding.kind: finding for case in checked.cases for finding in case.findings}
    for kind, is_failure, ids in checked.kinds():
        examples = ", ".join(ids[:_EXAMPLES]) + (", ..." if len(ids) > _EXAMPLES else "")
        wrong, remedy = kind, examples_of[kind].remedy
        if "N" in kind.split():  # which stands for any number
            wrong = examples_of[kind].reason.partition("; ")[0] + (" (or another number)" if len(ids) > 1 else "")
        yield f"{'failed' if is_failure else 'doubtful'}: {wrong}: {len(ids)} ({examples}); {remedy}"
    if checked.twins is None:
        yield "only headers were read: damaged voxels and twins are found without --headers"
    else:
        yield from checked.twins.lines()
    if checked.fingerprint is not None:
        yield f"fingerprint: {checked.fingerprint}"


def _figures(checked: surveys.Verification) -> dict[str, Any]:
    """The counts, the geometry, the problems with the ids of their cases, and the twins."""
    return {
        **{status: checked.count(status) for status in ("ok", "doubtful", "failed")},
        "problems": [{"kind": kind, "is_failure": is_failure, "ids": ids} for kind, is_failure, ids in checked.kinds()],
        "geometry": None if checked.survey is None else checked.survey.summary(),
        "twins": None if checked.twins is None else checked.twins.figures(),
        "fingerprint": checked.fingerprint,
    }


def _incomplete(checked: surveys.Verification) -> str | None:
    """How many scans cannot be used, and how many groups of twins are in different splits."""
    problems = []
    if num_failed := checked.count("failed"):
        problems.append(f"{num_failed} of {counted(len(checked.cases), 'scan')} cannot be used")
    if checked.twins is not None and (number := len(checked.twins.separated)):
        problems.append(f"{counted(number, 'group of twins')} {'is' if number == 1 else 'are'} in different splits")
    return ", and ".join(problems) or None


def survey_lines(survey: surveys.Survey) -> Iterator[str]:
    """A table of sizes, spacings and fields of view, and a line about outliers."""
    summary = survey.summary()
    axes = "R x A x S" if survey.spatial_dims == 3 else "rows x columns"
    table = Table(axes, "5th percentile", "median", "95th percentile")
    in_mm = [("spacing (mm)", "spacing_mm"), ("field of view (mm)", "field_mm")] if survey.has_mm else []
    for name, key in (("size", "size"), *in_mm):
        table.add_row(name, *(" x ".join(f"{v:g}" for v in summary[key][p]) for p in ("p5", "p50", "p95")))
    yield from table_lines(table)
    if survey.outliers:
        names = ", ".join(survey.outliers[:_MOST_OUTLIERS]) + (", ..." if len(survey.outliers) > _MOST_OUTLIERS else "")
        yield f"{counted(len(survey.outliers), 'scan')} far from the median by more than a factor of two: {names}"


# -- files -------------------------------------------------------------------------------------------------------------


def _write_table(verification: surveys.Verification, table: Path) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(_rows(verification))

    write_atomic(table, write)


def _rows(verification: surveys.Verification) -> Iterator[list[object]]:
    groups = [] if verification.twins is None else verification.twins.groups
    twins = {id: f"group {number}" for number, ids in enumerate(groups, 1) for id in ids}
    for checked in verification.cases:
        case, reading, findings = checked.reading.case, checked.reading, checked.findings
        spacing_mm = () if scans.is_picture(case.file) else reading.spacing_mm
        yield [
            case.id,
            case.file,
            case.split,
            checked.status,
            *(" / ".join(getattr(finding, name) for finding in findings) for name in ("kind", "reason", "remedy")),
            " x ".join(map(str, reading.size)),
            " x ".join(f"{v:.6g}" for v in spacing_mm),
            reading.channels or None,
            *(reading.intensities or [None] * 5),
            twins.get(case.id),
            reading.content,
        ]


def _overview(verification: surveys.Verification) -> pictures.CohortOverview:
    survey = verification.survey
    geometry: list[tuple[str, npt.NDArray[Any]]] = [] if survey is None else [("size (voxels)", survey.sizes)]
    if survey is not None and survey.has_mm:
        geometry += [("spacing (mm)", survey.spacings_mm), ("field of view (mm)", survey.fields_mm)]
    read = [checked for checked in verification.cases if checked.reading.intensities]
    return pictures.CohortOverview(
        ("R", "A", "S") if survey is None or survey.spatial_dims == 3 else ("rows", "columns"),
        geometry,
        np.array([checked.reading.intensities for checked in read]),
        [(kind, is_failure, len(ids)) for kind, is_failure, ids in verification.kinds()],
        _thumbnails(read),
    )


def _thumbnails(cases: list[surveys.CheckedCase]) -> list[npt.NDArray[np.float32]]:
    """A square number of small scans, evenly chosen; for volumes, the axial plane, front up."""
    prints = [checked.reading.print for checked in cases]
    small = [each.thumbnail for each in prints if each is not None and each.thumbnail is not None]
    number = int(min(len(small), _MOST_THUMBNAILS) ** 0.5) ** 2
    chosen = [small[k] for k in np.linspace(0, len(small) - 1, number).astype(int)]
    return [planes[0] if len(planes) == 1 else planes[2].T[::-1] for planes in chosen]
