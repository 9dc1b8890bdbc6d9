"""The files of ``verify``: a table with one row per case, and a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.scans import is_picture
from monai_diffae.data.verification import Verdict, Verification
from monai_diffae.errors import ConfigError
from monai_diffae.pictures import CohortOverview, draw_cohort_overview

_COLUMNS = (
    "case_id", "file", "split", "verdict", "kind", "reason", "remedy", "size", "spacing_mm", "channels", "minimum",
    "p1", "median", "p99", "maximum", "twins", "sha256",
)  # fmt: skip
_MOST_THUMBNAILS = 36


def check_table(path: Path) -> None:
    """Raise an error if the file exists and was not written by ``verify``."""
    if path.is_file() and not path.read_bytes().startswith(",".join(_COLUMNS).encode()):
        raise ConfigError(f"{path.name}: already exists and was not written by verify; move it, or choose another out")


def write_verification(verification: Verification, table: Path, picture: Path) -> None:
    """Write the table and the picture."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(_rows(verification))

    write_atomic(table, write)
    write_atomic(picture, lambda temporary: draw_cohort_overview(_overview(verification), temporary))


def _rows(verification: Verification) -> Iterator[list[object]]:
    groups = [] if verification.twins is None else verification.twins.groups
    twins = {id: f"group {number}" for number, ids in enumerate(groups, 1) for id in ids}
    for verdict in verification.verdicts:
        case, reading, findings = verdict.case, verdict.reading, verdict.findings
        spacing_mm = () if is_picture(case.file) else reading.spacing_mm
        yield [
            case.id, case.file, case.split, verdict.judgement,
            *(" / ".join(getattr(finding, name) for finding in findings) for name in ("kind", "reason", "remedy")),
            " x ".join(map(str, reading.size)), " x ".join(f"{v:.6g}" for v in spacing_mm),
            reading.channels or None, *(reading.intensities or [None] * 5), twins.get(case.id), reading.content,
        ]  # fmt: skip


def _overview(verification: Verification) -> CohortOverview:
    survey = verification.survey
    geometry: list[tuple[str, NDArray[Any]]] = [] if survey is None else [("size (voxels)", survey.sizes)]
    if survey is not None and survey.has_mm:
        geometry += [("spacing (mm)", survey.spacings_mm), ("field of view (mm)", survey.fields_mm)]
    read = [verdict for verdict in verification.verdicts if verdict.reading.intensities]
    return CohortOverview(
        ("R", "A", "S") if survey is None or survey.spatial_dims == 3 else ("rows", "columns"),
        geometry,
        np.array([verdict.reading.intensities for verdict in read]),
        [(kind, is_failure, len(ids)) for kind, is_failure, ids in verification.kinds()],
        _thumbnails(read),
    )


def _thumbnails(verdicts: list[Verdict]) -> list[NDArray[np.float32]]:
    """A square number of small scans, evenly chosen; for volumes, the axial plane, front up."""
    prints = [verdict.reading.fingerprint for verdict in verdicts]
    small = [each.thumbnail for each in prints if each is not None and each.thumbnail is not None]
    number = int(min(len(small), _MOST_THUMBNAILS) ** 0.5) ** 2
    chosen = [small[k] for k in np.linspace(0, len(small) - 1, number).astype(int)]
    return [planes[0] if len(planes) == 1 else planes[2].T[::-1] for planes in chosen]
