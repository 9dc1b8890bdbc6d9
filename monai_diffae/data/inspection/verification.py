"""Read every scan of a cohort, and say what is wrong with each and with the whole."""

import json
import re
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from monai_diffae.data.atomic import PartStore
from monai_diffae.data.cases import Case
from monai_diffae.data.fingerprints import digest, scan_states
from monai_diffae.data.formats.scan import Doubt
from monai_diffae.data.inspection.survey import Reading, Survey, make_survey, read_case
from monai_diffae.data.inspection.twins import SIZE, ScanPrint, TwinReport, find_twins, report_twins
from monai_diffae.data.progress import progress
from monai_diffae.data.splits import cases_of_one_file, files_in_two_splits, patients_in_two_splits
from monai_diffae.errors import counted

READINGS_VERSION = 3  # raised when readings have other content or come from other checks

Status = Literal["ok", "doubtful", "failed"]

_SAVE_INTERVAL_S = 5.0
_IN_BRACKETS, _NUMBER = re.compile(r"\s*\([^()]*\)"), re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class Finding:
    """What is wrong with a case."""

    kind: str  # the same text for the same problem in other cases
    reason: str  # what is wrong
    remedy: str  # what to do
    is_failure: bool = False  # whether the case cannot be used


@dataclass(frozen=True)
class CheckedCase:
    """A case, what was read and what is wrong with it."""

    case: Case
    reading: Reading
    findings: tuple[Finding, ...]

    @property
    def status(self) -> Status:
        """``ok``, ``doubtful`` or ``failed``."""
        if any(finding.is_failure for finding in self.findings):
            return "failed"
        return "doubtful" if self.findings else "ok"


@dataclass(frozen=True)
class Verification:
    """What is wrong with a cohort."""

    cases: list[CheckedCase]  # one per case, in order
    survey: Survey | None  # sizes and spacings of the cases of the usual kind that can be used; None: none can be used
    twins: TwinReport | None = None  # identical and nearly identical scans; None: only headers were read
    fingerprint: str | None = None  # SHA-256 of the ids, splits and contents of all cases; None: only headers were read

    def count(self, status: Status) -> int:
        """The number of cases with this status."""
        return sum(case.status == status for case in self.cases)

    def kinds(self) -> list[tuple[str, bool, list[str]]]:
        """Each kind of problem, whether it is a failure, and the ids of its cases; the most frequent first."""
        ids: dict[tuple[str, bool], list[str]] = {}
        for checked in self.cases:
            for finding in checked.findings:
                ids.setdefault((finding.kind, finding.is_failure), []).append(checked.case.id)
        ranked = sorted(ids.items(), key=lambda item: (not item[0][1], -len(item[1]), item[0][0]))
        return [(kind, is_failure, members) for (kind, is_failure), members in ranked]


# -- reading -----------------------------------------------------------------------------------------------------------


def read_cases(
    cases: Sequence[Case], headers: bool = False, workers: int = 0, folder: Path | None = None
) -> list[Reading]:
    """Read all cases, with a progress bar; ``folder`` keeps the readings, so that an interrupted run resumes."""
    import pandas as pd

    from monai_diffae.data.streamed import in_order

    store = None if folder is None else PartStore(folder, READINGS_VERSION, replace=True)
    # files of several patients may have the same name, size and time, so the case counts, too
    states = scan_states(cases) if store is not None else [""] * len(cases)
    keys = [digest(f"{case.file_name} {state} {headers}") for case, state in zip(cases, states, strict=True)]
    readings: dict[int, Reading] = {}
    if store is not None:
        saved = {str(row["id"]): row for row in store.read().to_dict("records")}
        readings = {k: _from_row(saved[key]) for k, key in enumerate(keys) if key in saved}
    missing = [k for k in range(len(cases)) if k not in readings]
    stream = in_order([cases[k] for k in missing], partial(read_case, headers=headers), workers)
    task = f"reading {'the headers of ' if headers else ''}{counted(len(missing), 'scan')}"
    unsaved, saved_at = [], time.monotonic()
    try:
        with progress(len(missing), task) as advance:
            for k, reading in zip(missing, stream, strict=True):
                readings[k] = reading
                unsaved.append({"id": keys[k], **_to_row(reading)})
                if store is not None and time.monotonic() - saved_at > _SAVE_INTERVAL_S:
                    store.append(pd.DataFrame(unsaved))
                    unsaved, saved_at = [], time.monotonic()
                advance()
    finally:
        if store is not None:
            store.append(pd.DataFrame(unsaved))
    return [readings[k] for k in range(len(cases))]


def _to_row(reading: Reading) -> dict[str, Any]:
    row = {**vars(reading), "doubts": json.dumps([asdict(doubt) for doubt in reading.doubts])}
    scan = row.pop("print")
    thumbnail = None if scan is None or scan.thumbnail is None else scan.thumbnail.tobytes()
    return {**row, "digest": None if scan is None else scan.digest, "thumbnail": thumbnail}


def _from_row(row: Mapping[Hashable, Any]) -> Reading:
    digest, thumbnail = row["digest"], row["thumbnail"]
    small = np.frombuffer(thumbnail, np.float32).reshape(-1, SIZE, SIZE) if isinstance(thumbnail, bytes) else None
    return Reading(
        row["error"], tuple(Doubt(**doubt) for doubt in json.loads(row["doubts"])), tuple(map(int, row["size"])),
        tuple(map(float, row["spacing_mm"])), int(row["channels"]), tuple(map(float, row["intensities"])),
        row["content"], ScanPrint(digest, small) if isinstance(digest, str) else None,
    )  # fmt: skip


# -- what is wrong -----------------------------------------------------------------------------------------------------


def verify_cases(cases: Sequence[Case], readings: Sequence[Reading]) -> Verification:
    """Judge the cases of a cohort by what was read, each by itself and by comparison with the others."""
    usable = [reading for reading in readings if not reading.error]
    survey = make_survey(cases, readings) if usable else None
    channels = Counter(reading.channels for reading in usable).most_common(1)
    outliers, leaks = set(survey.outliers if survey else ()), find_leaks(cases)
    checked = []
    for case, reading in zip(cases, readings, strict=True):
        findings = [*_findings(reading), *leaks.get(case.id, ())]
        if survey is not None and not reading.error:
            findings += _unlike(reading, survey.spatial_dims, channels[0][0])
        if case.id in outliers:
            reason = "its spacing or field of view differs from the median by more than a factor of two"
            findings.append(Finding("unusual geometry", reason, "check its header, or omit it"))
        checked.append(CheckedCase(case, reading, tuple(findings)))
    if not any(reading.content for reading in readings):
        return Verification(checked, survey)
    prints = {k: reading.print for k, reading in enumerate(readings) if reading.print is not None}
    twins = report_twins(cases, find_twins(prints, [case.patient for case in cases]))
    lines = [f"{digest(case.id)} {case.split} {reading.content}" for case, reading in zip(cases, readings, strict=True)]
    return Verification(checked, survey, twins, digest("\n".join(sorted(lines))))  # in any order, without names


def find_leaks(cases: Sequence[Case]) -> dict[str, list[Finding]]:
    """The patients and files that several splits share, and files that occur twice, as findings by the ids of cases."""
    findings: dict[str, list[Finding]] = {}
    same_file = [group for group in cases_of_one_file(cases) if len({case.split for case in group} - {None}) < 2]
    for kind, remedy, groups in (
        ("its patient is in two splits", "put all scans of a patient into one split", patients_in_two_splits(cases)),
        ("its file is in two splits", "keep one of its rows", files_in_two_splits(cases)),
        ("another case has the same file", "keep one of its rows", same_file),
    ):
        for group in groups:
            for case in group:
                others = [each for each in group if each is not case]
                other = next((each for each in others if each.split != case.split), others[0])
                place = f" ({other.split})" if other.split else ""
                reason = f"{kind}, as in {other.id[:60]}{place}"
                findings.setdefault(case.id, []).append(Finding(kind, reason, remedy, is_failure=True))
    return findings


def _findings(reading: Reading) -> Iterator[Finding]:
    if reading.error:
        # the name of the file comes first, and what to do last
        wrong, _, remedy = reading.error.partition(": ")[2].rpartition("; ")
        yield Finding(_kind(wrong), wrong, remedy, is_failure=True)
    for doubt in reading.doubts:
        yield Finding(_kind(doubt.wrong), str(doubt), doubt.remedy)


def _kind(reason: str) -> str:
    """A reason without what differs from case to case: numbers, and details in brackets."""
    return _NUMBER.sub("N", _IN_BRACKETS.sub("", reason))


def _unlike(reading: Reading, dims: int, channels: int) -> Iterator[Finding]:
    if len(reading.size) < dims:
        reason = "a 2D image among volumes"
        yield Finding(reason, reason, "use a cohort of its own for it", is_failure=True)
    elif len(reading.size) > dims:
        reason = "a volume among 2D images"
        yield Finding(reason, reason, "use a cohort of its own for it, unless its slices are like the images")
    if reading.channels == 3 != channels:
        reason = "a colour image among grey ones"
        yield Finding(reason, reason, "train with --colour grey or rgb, or convert it")
    elif reading.channels != channels:
        reason = f"it has {reading.channels} channels, but most have {channels}"
        yield Finding(_kind(reason), reason, "convert it, or use a cohort of its own for it")
