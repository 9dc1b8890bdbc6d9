"""What twins mean for a cohort: which are in different splits, of different patients, or differently labelled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from monai_diffae.data.cases import Case, Label
from monai_diffae.data.twins import TwinGroup
from monai_diffae.errors import counted

ADVICE = "monai-diffae list-scans --group-duplicates gives twins one patient, so that no split separates them"
_ADVICE_IF_SEPARATED = f"correct the column split of the table; if it has none, {ADVICE}"

_EXAMPLES = 5
_MOST_CLASSES = 20


@dataclass(frozen=True)
class Pair:
    """Two twins, and what differs between them.

    Attributes:
        ids: the ids of the two cases.
        what: the name of what differs, such as ``split`` or a label.
        values: its value for each of them.
    """

    ids: tuple[str, str]
    what: str
    values: tuple[Label, Label]

    def __str__(self) -> str:
        (first, second), (one, other) = self.ids, self.values
        return f"{first} ({self.what} {one}) and {second} ({self.what} {other})"


@dataclass(frozen=True)
class TwinReport:
    """The twins of a cohort.

    Attributes:
        groups: the ids of each group.
        num_identical: groups whose scans have the same voxels.
        separated: one pair per group that is in several splits.
        contradictory: one pair per group and label that its scans do not share.
        other_patients: one pair per group with several patients.
    """

    groups: list[list[str]]
    num_identical: int
    separated: list[Pair]
    contradictory: list[Pair]
    other_patients: list[Pair]

    def lines(self) -> Iterator[str]:
        """Lines with counts, examples and advice; none if there are no twins."""
        if not self.groups:
            return
        num_scans = sum(map(len, self.groups))
        yield (
            f"twins: {num_scans} scans in {counted(len(self.groups), 'group')} are identical or nearly so "
            f"({self.num_identical} identical, {len(self.other_patients)} of different patients): "
            f"{_listed(' = '.join(ids[:3]) for ids in self.groups)}"
        )
        if self.other_patients and not self.separated:
            yield f"a random split may separate twins of different patients; {ADVICE}"
        yield from self.problems()

    def problems(self) -> Iterator[str]:
        """Lines about twins in different splits and with different labels."""
        if self.separated:
            yield (
                f"{counted(len(self.separated), 'group')} of twins in different splits: {_listed(self.separated)}; "
                f"{_ADVICE_IF_SEPARATED}"
            )
        yield from self.contradictions()

    def contradictions(self) -> Iterator[str]:
        """A line about twins with different labels, if there are any."""
        if self.contradictory:
            pairs = counted(len(self.contradictory), "pair")
            yield f"{pairs} of twins with different labels: {_listed(self.contradictory)}; correct or remove them"

    def figures(self) -> dict[str, Any]:
        """Everything, as plain values for JSON."""
        pairs = {"separated": self.separated, "contradictory": self.contradictory}
        listed = {
            name: [{"ids": list(pair.ids), "what": pair.what, "values": list(pair.values)} for pair in content]
            for name, content in pairs.items()
        }
        return {"groups": self.groups, "num_identical": self.num_identical, **listed,
                "num_of_different_patients": len(self.other_patients)}  # fmt: skip


def report_twins(cases: Sequence[Case], groups: Sequence[TwinGroup]) -> TwinReport:
    """Report the twins among cases.

    Args:
        cases: N cases; labels with at most 20 different values, none a fraction, are compared.
        groups: twins, by their positions among the cases.

    Example:
        >>> cases = [Case(name, {}, name, split, {"ill": ill})
        ...          for name, split, ill in (("a", "train", 0), ("b", "test", 1), ("c", "test", 1))]
        >>> for line in report_twins(cases, [TwinGroup((0, 1), is_identical=True)]).lines():
        ...     print(line.partition(";")[0])
        twins: 2 scans in 1 group are identical or nearly so (1 identical, 1 of different patients): a = b
        1 group of twins in different splits: a (split train) and b (split test)
        1 pair of twins with different labels: a (ill 0) and b (ill 1)
    """
    names = dict.fromkeys(name for case in cases for name in case.labels)
    classes = [name for name in names if _are_classes([case.labels.get(name) for case in cases])]
    report = TwinReport([], sum(group.is_identical for group in groups), [], [], [])
    for group in groups:
        members = [cases[position] for position in group.members]
        report.groups.append([case.id for case in members])
        report.separated.extend(_differing(members, "split", [case.split for case in members]))
        report.other_patients.extend(_differing(members, "patient", [case.patient for case in members]))
        for name in classes:
            report.contradictory.extend(_differing(members, name, [case.labels.get(name) for case in members]))
    return report


def _are_classes(values: Sequence[Label]) -> bool:
    """Whether a label names classes, which twins should share, unlike a measurement or the name of a file."""
    different = {value for value in values if value is not None}
    has_fractions = any(isinstance(value, float) and not value.is_integer() for value in different)
    return len(different) <= min(_MOST_CLASSES, len(values) // 2 + 1) and not has_fractions


def _differing(cases: Sequence[Case], what: str, values: Sequence[Label]) -> list[Pair]:
    """The first pair with different known values, or none."""
    known = [(case.id, value) for case, value in zip(cases, values, strict=True) if value is not None]
    for (first, one), (second, other) in combinations(known, 2):
        if one != other:
            return [Pair((first, second), what, (one, other))]
    return []


def _listed(items: Iterable[object]) -> str:
    texts = [str(item) for item in items]
    return "; ".join(texts[:_EXAMPLES]) + (f"; and {len(texts) - _EXAMPLES} more" if len(texts) > _EXAMPLES else "")
