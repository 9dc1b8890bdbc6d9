"""The verdict on each case of a cohort: ok, doubtful or failed, with reason and remedy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from monai_diffae.data.cases import Case
from monai_diffae.data.splits import cases_of_one_file, files_in_two_splits, patients_in_two_splits
from monai_diffae.data.verification.readings import Reading

Judgement = Literal["ok", "doubtful", "failed"]

_IN_BRACKETS, _NUMBER = re.compile(r"\s*\([^()]*\)"), re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class Finding:
    """What is wrong with a case.

    Attributes:
        kind: the same text for the same problem in other cases.
        reason: what is wrong.
        remedy: what to do.
        is_failure: whether the case cannot be used.
    """

    kind: str
    reason: str
    remedy: str
    is_failure: bool = False


@dataclass(frozen=True)
class Verdict:
    """A case, what was read and what is wrong with it."""

    case: Case
    reading: Reading
    findings: tuple[Finding, ...]

    @property
    def judgement(self) -> Judgement:
        """``ok``, ``doubtful`` or ``failed``."""
        if any(finding.is_failure for finding in self.findings):
            return "failed"
        return "doubtful" if self.findings else "ok"


def give_verdicts(
    cases: Sequence[Case],
    readings: Sequence[Reading],
    outliers: Sequence[str] = (),
    leaks: Mapping[str, Sequence[Finding]] = MappingProxyType({}),
) -> list[Verdict]:
    """Judge each case by its own reading, and by comparison with the others.

    Args:
        cases: N cases.
        readings: what was read from each.
        outliers: ids of cases whose geometry is unlike that of the others.
        leaks: findings by id about patients and files that several splits share, from :func:`find_leaks`.

    Example:
        >>> gone = Reading(error="a.nii: there is no such file; check the path")
        >>> [verdict] = give_verdicts([Case("a", {}, "a")], [gone])
        >>> verdict.judgement, verdict.findings[0].reason, verdict.findings[0].remedy
        ('failed', 'there is no such file', 'check the path')
    """
    usual_dims, usual_channels = usual_kind(readings)
    outlying = set(outliers)
    verdicts = []
    for case, reading in zip(cases, readings, strict=True):
        findings = [*_of_reading(reading), *leaks.get(case.id, ())]
        if reading.size and not reading.error:
            findings += _unlike(reading, usual_dims, usual_channels)
            if case.id in outlying:
                reason = "its spacing or field of view differs from the median by more than a factor of two"
                findings.append(Finding("unusual geometry", reason, "check its header, or omit it"))
        verdicts.append(Verdict(case, reading, tuple(findings)))
    return verdicts


def find_leaks(cases: Sequence[Case]) -> dict[str, list[Finding]]:
    """The patients and files that several splits share, and files that occur twice, as findings by the ids of cases.

    Example:
        >>> from pathlib import Path
        >>> splits = {"a": "train", "b": "test"}
        >>> cases = [Case(id, {"image": Path(f"{id}.nii")}, "p", split) for id, split in splits.items()]
        >>> [finding.reason for finding in find_leaks(cases)["b"]]
        ['its patient is in two splits, as in a (train)']
    """
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


def usual_kind(readings: Sequence[Reading]) -> tuple[int, int]:
    """The dimensions and channels that most usable cases have; zeros if none can be used."""
    usable = [reading for reading in readings if not reading.error]
    dims, channels = (
        Counter(values).most_common(1)
        for values in ((len(reading.size) for reading in usable), (reading.channels for reading in usable))
    )
    return (dims[0][0] if dims else 0), (channels[0][0] if channels else 0)


def _of_reading(reading: Reading) -> Iterator[Finding]:
    if reading.error:
        # the name of the file comes first, and what to do last
        wrong, _, remedy = reading.error.partition(": ")[2].rpartition("; ")
        yield Finding(_kind(wrong), wrong, remedy, is_failure=True)
    for doubt in reading.doubts:
        yield Finding(_kind(doubt.wrong), str(doubt), doubt.remedy)


def _kind(reason: str) -> str:
    """A reason without what differs from case to case: numbers, and details in brackets.

    Example:
        >>> _kind("the file ends early (352 of 4096 bytes)"), _kind("3 of its voxels are NaN or infinite")
        ('the file ends early', 'N of its voxels are NaN or infinite')
    """
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
