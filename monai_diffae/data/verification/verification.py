"""Read the cases of a cohort, and say what is wrong with each of them and with the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from monai_diffae.data.cases import Case
from monai_diffae.data.progress import progress
from monai_diffae.data.streamed import in_order
from monai_diffae.data.survey import Survey
from monai_diffae.data.twin_reports import TwinReport, report_twins
from monai_diffae.data.twins import find_twins_among
from monai_diffae.data.verification.readings import Reading, read_case
from monai_diffae.data.verification.saved_readings import SavedReadings
from monai_diffae.data.verification.verdicts import Judgement, Verdict, find_leaks, give_verdicts, usual_kind
from monai_diffae.errors import counted


@dataclass(frozen=True)
class Verification:
    """What is wrong with a cohort.

    Attributes:
        verdicts: one per case, in order.
        survey: sizes and spacings of the cases of the usual kind that can be used; None: none can be used.
        twins: identical and nearly identical scans; None: only headers were read.
        fingerprint: SHA-256 of the ids, splits and contents of all cases; None: only headers were read.
    """

    verdicts: list[Verdict]
    survey: Survey | None
    twins: TwinReport | None = None
    fingerprint: str | None = None

    def count(self, judgement: Judgement) -> int:
        """The number of cases with this verdict."""
        return sum(verdict.judgement == judgement for verdict in self.verdicts)

    def kinds(self) -> list[tuple[str, bool, list[str]]]:
        """Each kind of problem, whether it is a failure, and the ids of its cases; the most frequent first."""
        ids: dict[tuple[str, bool], list[str]] = {}
        for verdict in self.verdicts:
            for finding in verdict.findings:
                ids.setdefault((finding.kind, finding.is_failure), []).append(verdict.case.id)
        ranked = sorted(ids.items(), key=lambda item: (not item[0][1], -len(item[1]), item[0][0]))
        return [(kind, is_failure, members) for (kind, is_failure), members in ranked]


def read_cases(
    cases: Sequence[Case], headers: bool = False, workers: int = 0, saved: SavedReadings | None = None
) -> list[Reading]:
    """Read all cases, with a progress bar.

    Args:
        cases: the cases.
        headers: read headers only.
        workers: processes that read; 0: this one.
        saved: readings of an earlier run, which are used again; new ones are added.

    Raises:
        MachineError: a worker died, or the readings cannot be saved.
    """
    readings = {} if saved is None else {k: old for k, case in enumerate(cases) if (old := saved.get(case)) is not None}
    missing = [k for k in range(len(cases)) if k not in readings]
    what = "the headers of " if headers else ""
    stream = in_order(_Cases([cases[k] for k in missing], headers), workers)
    with progress(len(missing), f"reading {what}{counted(len(missing), 'scan')}") as advance:
        for k, reading in zip(missing, stream, strict=True):
            readings[k] = reading
            if saved is not None:
                saved.add(cases[k], reading)
            advance()
    return [readings[k] for k in range(len(cases))]


def verify_cases(cases: Sequence[Case], readings: Sequence[Reading]) -> Verification:
    """Judge the cases of a cohort by what was read.

    Example:
        >>> from pathlib import Path
        >>> cases = [Case("a", {"image": Path("gone.nii")}, "a")]
        >>> verify_cases(cases, read_cases(cases)).count("failed")
        1
    """
    survey = _survey(cases, readings)
    verdicts = give_verdicts(cases, readings, [] if survey is None else survey.outliers, find_leaks(cases))
    if not any(reading.content for reading in readings):
        return Verification(verdicts, survey)
    return Verification(verdicts, survey, _twins(cases, readings), _fingerprint(cases, readings))


def _survey(cases: Sequence[Case], readings: Sequence[Reading]) -> Survey | None:
    dims, _ = usual_kind(readings)
    usable = [(case.id, reading) for case, reading in zip(cases, readings, strict=True)
              if not reading.error and len(reading.size) == dims]  # fmt: skip
    if not usable:
        return None
    sizes = np.array([reading.size for _, reading in usable])
    return Survey([id for id, _ in usable], sizes, np.array([reading.spacing_mm for _, reading in usable]))


def _twins(cases: Sequence[Case], readings: Sequence[Reading]) -> TwinReport:
    fingerprints = {k: reading.fingerprint for k, reading in enumerate(readings) if reading.fingerprint is not None}
    return report_twins(cases, find_twins_among(cases, fingerprints))


def _fingerprint(cases: Sequence[Case], readings: Sequence[Reading]) -> str:
    """A SHA-256 that no name can be read from, and that does not depend on the order of the cases."""
    lines = [
        f"{hashlib.sha256(case.id.encode(errors='surrogatepass')).hexdigest()} {case.split} {reading.content}"
        for case, reading in zip(cases, readings, strict=True)
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


class _Cases(Dataset[Any]):
    def __init__(self, cases: Sequence[Case], headers: bool) -> None:
        self.cases, self.headers = cases, headers

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Reading:
        return read_case(self.cases[index], self.headers)
