"""Read the scans of a cohort, describe them, and say what is wrong with each and with the whole."""

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.atomic import PartStore
from monai_diffae.data.cases import Case, cases_of_one_file, files_in_two_splits, patients_in_two_splits, spread_cases
from monai_diffae.data.fingerprints import digest
from monai_diffae.data.formats.scan import Doubt, Floats, Header
from monai_diffae.data.inspection.twins import SIZE, ScanPrint, TwinReport, find_twins, report_twins, scan_print
from monai_diffae.data.progress import Failure, check_any_usable, count_by_label, track
from monai_diffae.data.scan_states import item_hash, scan_states
from monai_diffae.data.scans import (
    apply_policy,
    check_channels,
    displayed_geometry,
    is_picture,
    may_be_dicom,
    read_header,
    read_with_doubts,
)
from monai_diffae.errors import ScanError, counted
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Colour

with on_first_use:
    from monai_diffae.data import streamed

_FORMULA = re.compile(r"[=@]|[+-].*[(|!]")
_PERCENTILES = (0, 1, 50, 99, 100)
_OUTLIER_RATIO = 2.0  # ratio of a value to the median, or of the median to a value, beyond which a scan is an outlier


@dataclass(frozen=True, eq=False)
class Reading:
    """What was found in the files of a case."""

    case: Case
    error: str = ""  # why it cannot be used, in one line; empty: it can
    doubts: tuple[Doubt, ...] = ()  # why it may not be what was measured
    size: tuple[int, ...] = ()  # voxels of its first image along R, A and S, or rows and columns
    spacing_mm: tuple[float, ...] = ()  # voxel spacing along the same axes
    channels: int = 0  # channels of its first file; 0: only the header was read
    intensities: tuple[float, ...] = ()  # the percentiles 0, 1, 50, 99 and 100 of its first file
    content: str = ""  # the SHA-256 of its files; empty: only the headers were read
    print: ScanPrint | None = None  # of its first file, to find twins


def read_case(case: Case, headers: bool = False, *, is_complete: bool = True) -> Reading:
    """Read all files of a case, or their headers; without ``is_complete``, only log doubts, and find size and print."""
    content = item_hash(case.item()) if is_complete and not headers else ""
    try:
        files = case.files if is_complete or headers else case.files[:1]
        scans = [read_header(file) if headers else read_with_doubts(file) for file in files]
    except ScanError as error:
        return Reading(case, str(error), content=content)
    if not is_complete:
        for file, scan in zip(files, scans, strict=True):
            apply_policy(file, scan.doubts)
    doubts, first = tuple(dict.fromkeys(doubt for scan in scans for doubt in scan.doubts)), scans[0]
    if isinstance(first, Header):
        return Reading(case, "", doubts, *displayed_geometry(first.shape, first.affine))
    size, spacing_mm = displayed_geometry(first.array.shape[1:], first.affine)
    intensities = np.percentile(first.array, _PERCENTILES).tolist() if is_complete else ()
    prints = scan_print(first)
    return Reading(case, "", doubts, size, spacing_mm, len(first.array), tuple(intensities), content, prints)


@dataclass(frozen=True, eq=False)
class Survey:
    """Sizes and spacings of a cohort's scans of one kind: volumes or 2D images."""

    ids: list[str]  # (N,) ids of the scans
    sizes: NDArray[np.int64]  # (N, D) voxels along R, A and S of volumes, or rows and columns of images
    spacings_mm: Floats  # (N, D) voxel spacings in mm
    # cases whose header cannot be read, or that are of the other kind
    failures: list[Failure] = field(default_factory=list)

    def after_check(self, failures: Sequence[Failure]) -> "Survey":
        """The survey with other ``failures``: all cases that cannot be used."""
        failed = {failure.case_id for failure in failures}
        usable = [row for row, id in enumerate(self.ids) if id not in failed]
        check_any_usable(len(usable), failures, "scans")
        ids = [self.ids[row] for row in usable]
        return Survey(ids, self.sizes[usable], self.spacings_mm[usable], list(failures))

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return int(self.sizes.shape[1])

    @property
    def has_mm(self) -> bool:
        """Whether the spacings are known: pictures have none, and are read as 1."""
        return self.spatial_dims == 3 or bool((self.spacings_mm != 1).any())

    @property
    def fields_mm(self) -> Floats:
        """(N, D) the scans' fields of view in mm."""
        extents: Floats = self.sizes * self.spacings_mm
        return extents

    @property
    def outliers(self) -> list[str]:
        """Ids of scans with a spacing or field of view below half the median, or above twice the median, of an axis."""
        is_outlier = np.zeros(len(self.ids), bool)
        for values in (self.spacings_mm, self.fields_mm):
            ratio = values / np.median(values, axis=0)
            is_outlier |= ((ratio > _OUTLIER_RATIO) | (ratio < 1 / _OUTLIER_RATIO)).any(axis=1)
        return [id for id, outlying in zip(self.ids, is_outlier, strict=True) if outlying]

    def summary(self) -> dict[str, Any]:
        """Counts, and the 5th, 50th and 95th percentile per axis, as plain values for JSON."""
        measures = {"size": self.sizes, "spacing_mm": self.spacings_mm, "field_mm": self.fields_mm}
        percentiles = {
            name: {f"p{p}": np.percentile(values, p, axis=0).round(3).tolist() for p in (5, 50, 95)}
            for name, values in measures.items()
        }
        failures = [asdict(failure) for failure in self.failures]
        counts = {"num_scans": len(self.ids), "num_failed": len(failures), "spatial_dims": self.spatial_dims}
        return {**counts, **percentiles, "outliers": self.outliers, "failures": failures}


def survey_cohort(cases: Sequence[Case], spatial_dims: int | None = None) -> Survey:
    """Survey a cohort for a 2D or 3D model by its headers."""
    return make_survey([read_case(case, headers=True, is_complete=False) for case in cases], spatial_dims)


def make_survey(readings: Sequence[Reading], spatial_dims: int | None = None) -> Survey:
    """Survey what was read; by default for the dimensions that most scans have."""
    spatial_dims = spatial_dims or _usual_dims(readings)
    failures, usable = list_failures(readings), [r for r in readings if not r.error and len(r.size) >= spatial_dims]
    for case in (r.case for r in readings if not r.error and len(r.size) < spatial_dims):
        reason = f"{case.file}: a 2D image among volumes; use a cohort of its own for it"
        failures.append(Failure(case.id, case.file, reason))
    check_any_usable(len(usable), failures, "scans")
    # a 2D model sees the axial slices of a volume
    along = [slice(None) if len(r.size) == spatial_dims else slice(1, None, -1) for r in usable]
    sizes = np.array([r.size[axes] for r, axes in zip(usable, along, strict=True)])
    spacings = np.array([r.spacing_mm[axes] for r, axes in zip(usable, along, strict=True)])
    return Survey([r.case.id for r in usable], sizes, spacings, failures)


def _usual_dims(readings: Sequence[Reading]) -> int:
    """The dimensions that most readable scans have."""
    sizes = [reading.size for reading in readings if not reading.error]
    return 3 if 2 * sum(len(size) == 3 for size in sizes) > len(sizes) else 2


def list_failures(readings: Sequence[Reading]) -> list[Failure]:
    """The cases that cannot be read."""
    return [Failure(each.case.id, each.case.file, each.error) for each in readings if each.error]


def other_channels(cases: Iterable[Case], channels: int, colour: Colour) -> list[Failure]:
    """The cases that a model with these channels refuses, or whose pixels cannot be read."""
    failures = []
    for case in cases:
        try:
            images = case.images["image"]
            for file in images if isinstance(images, tuple) else (images,):
                check_channels(file, 1 if isinstance(images, tuple) else channels, colour)
        except ScanError as error:
            failures.append(Failure(case.id, case.file, str(error)))
    return failures


@dataclass(frozen=True)
class Appearance:
    """What some scans of a cohort look like."""

    readings: Sequence[Reading]  # one for each scan that was looked at

    @property
    def colour(self) -> list[str]:
        """Ids of the pictures and DICOM files with three different channels; in other formats they may be sequences."""
        three = [each.case for each in self.readings if each.channels == 3]
        return [case.id for case in three if is_picture(case.file) or may_be_dicom(case.file)]

    @property
    def prints(self) -> dict[int, ScanPrint]:
        """The prints of the readable scans by their positions, to find twins."""
        return {k: reading.print for k, reading in enumerate(self.readings) if reading.print is not None}

    def of_dims(self, dims: int) -> list[Reading]:
        """The readable scans that are 2D images, or volumes."""
        return [reading for reading in self.readings if len(reading.size) == dims]

    def lines(self) -> Iterator[str]:
        """One line about the kinds and sizes, and one each about colour, mixed kinds and unreadable scans."""
        images, volumes, failures = self.of_dims(2), self.of_dims(3), list_failures(self.readings)
        cases = [each.case for each in self.readings]
        total = f"of {counted(len(images) + len(volumes), 'scan')} looked at"
        if images:
            yield f"2D images: {len(images)} {total}, {_range([each.size for each in images])}"
        if volumes:
            size, spacing = _range([each.size for each in volumes]), _range([each.spacing_mm for each in volumes])
            yield f"volumes: {len(volumes)} {total}, {size}, voxels of {spacing} mm"
        if self.colour:
            count = f"{len(self.colour)} are in colour{count_by_label(self.colour, cases)}"
            yield f"{count}: train with --colour grey or --colour rgb, or they are left out"
        if images and volumes:
            yield "2D images and volumes are mixed: a 3D model leaves the images out, a 2D model slices the volumes"
        if failures:
            by_label = count_by_label([failure.case_id for failure in failures], cases)
            yield f"{len(failures)} cannot be read{by_label}, the first: {failures[0].reason}"

    def figures(self) -> dict[str, Any]:
        """Counts as plain values."""
        return {
            "num_images": len(self.of_dims(2)),
            "num_volumes": len(self.of_dims(3)),
            "num_colour": len(self.colour),
            "num_unreadable": len(list_failures(self.readings)),
        }


def look_at(cases: Sequence[Case], limit: int | None = None) -> Appearance:
    """Read the files of all cases, or of at most ``limit`` of them, and describe the scans."""
    text = f"reading {counted(len(cases), 'scan')} to find twins"
    shown = track(cases, text) if limit is None else spread_cases(cases, limit)
    return Appearance([read_case(case, is_complete=False) for case in shown])


def _range(values: Sequence[Sequence[float]]) -> str:
    """Sizes or spacings: ``40 x 50`` if all are equal, else ``40-60 x 50``."""
    ends = zip(np.min(values, axis=0), np.max(values, axis=0), strict=True)
    return " x ".join(f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g}-{high:.3g}" for low, high in ends)


# -- what is wrong with a cohort ---------------------------------------------------------------------------------------


READINGS_VERSION = 3  # raised when readings have other content or come from other checks

Status = Literal["ok", "doubtful", "failed"]

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
    """What was read of a case, and what is wrong with it."""

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
                ids.setdefault((finding.kind, finding.is_failure), []).append(checked.reading.case.id)
        ranked = sorted(ids.items(), key=lambda item: (not item[0][1], -len(item[1]), item[0][0]))
        return [(kind, is_failure, members) for (kind, is_failure), members in ranked]


# -- reading -----------------------------------------------------------------------------------------------------------


def read_cases(
    cases: Sequence[Case], headers: bool = False, workers: int = 0, folder: Path | None = None
) -> list[Reading]:
    """Read all cases, with a progress bar; ``folder`` keeps the readings, so that an interrupted run resumes."""
    store = None if folder is None else PartStore(folder, READINGS_VERSION, replace=True)
    # files of several patients may have the same name, size and time, so the case counts, too
    states = scan_states(cases) if store is not None else [""] * len(cases)
    keys = [digest(f"{case.file_name} {state} {headers}") for case, state in zip(cases, states, strict=True)]
    items, task = dict(zip(keys, cases, strict=True)), "reading the headers of" if headers else "reading"
    rows = streamed.resumed(items, partial(_read_row, headers=headers), store, workers, task, "scan")
    return [_from_row(case, rows[key]) for case, key in zip(cases, keys, strict=True)]


def _read_row(case: Case, headers: bool) -> dict[str, Any]:
    return _to_row(read_case(case, headers=headers))


def _to_row(reading: Reading) -> dict[str, Any]:
    row = {**vars(reading), "doubts": json.dumps([asdict(doubt) for doubt in reading.doubts])}
    scan, _ = row.pop("print"), row.pop("case")
    thumbnail = None if scan is None or scan.thumbnail is None else scan.thumbnail.tobytes()
    return {**row, "digest": None if scan is None else scan.digest, "thumbnail": thumbnail}


def _from_row(case: Case, row: Mapping[Hashable, Any]) -> Reading:
    digest, thumbnail = row["digest"], row["thumbnail"]
    small = np.frombuffer(thumbnail, np.float32).reshape(-1, SIZE, SIZE) if isinstance(thumbnail, bytes) else None
    return Reading(
        case,
        row["error"],
        tuple(Doubt(**doubt) for doubt in json.loads(row["doubts"])),
        tuple(map(int, row["size"])),
        tuple(map(float, row["spacing_mm"])),
        int(row["channels"]),
        tuple(map(float, row["intensities"])),
        row["content"],
        ScanPrint(digest, small) if isinstance(digest, str) else None,
    )


# -- what is wrong -----------------------------------------------------------------------------------------------------


def verify_cases(readings: Sequence[Reading]) -> Verification:
    """Judge the cases of a cohort by what was read, each by itself and by comparison with the others."""
    usable = [reading for reading in readings if not reading.error]
    dims = _usual_dims(readings)
    usual = [each for each in readings if each.error or len(each.size) == dims]
    survey = make_survey(usual, dims) if usable else None
    channels = Counter(reading.channels for reading in usable).most_common(1)
    cases = [reading.case for reading in readings]
    outliers, leaks = set(survey.outliers if survey else ()), find_leaks(cases)
    checked = []
    for reading in readings:
        findings = [*_findings(reading), *leaks.get(reading.case.id, ())]
        if survey is not None and not reading.error:
            findings += _unlike(reading, survey.spatial_dims, channels[0][0])
        if reading.case.id in outliers:
            reason = "its spacing or field of view differs from the median by more than a factor of two"
            findings.append(Finding("unusual geometry", reason, "check its header, or omit it"))
        checked.append(CheckedCase(reading, tuple(findings)))
    if not any(reading.content for reading in readings):
        return Verification(checked, survey)
    prints = {k: reading.print for k, reading in enumerate(readings) if reading.print is not None}
    twins = report_twins(cases, find_twins(prints, [case.patient for case in cases]))
    lines = [f"{digest(each.case.id)} {each.case.split} {each.content}" for each in readings]
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
    if any(_FORMULA.match(str(text)) for text in (reading.case.id, *reading.case.labels.values())):
        reason = "a cell of its row is a formula for a spreadsheet"
        yield Finding(reason, reason, "correct the cell, and do not open tables of others in a spreadsheet")
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
        reason = f"it has {counted(reading.channels, 'channel')}, but most have {channels}"
        yield Finding("another number of channels than most", reason, "convert it, or use a cohort of its own for it")
