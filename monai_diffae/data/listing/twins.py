"""Twins among listed scans: marked in a column, and made one patient."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from monai_diffae.data.cases import Case, Label
from monai_diffae.data.twin_reports import report_twins
from monai_diffae.data.twins import TwinGroup, merge_patients
from monai_diffae.errors import CohortError, quoted

COLUMN = "twins"


class SeparatedTwins(CohortError):
    """The column ``split`` puts twins into different splits, so they cannot become one patient."""


def mark_twins(cases: Sequence[Case], groups: Sequence[TwinGroup]) -> list[Case]:
    """The cases with a column ``twins``, which is the same text for the twins of a group, such as ``group 1``.

    A column of this name from an earlier listing is replaced, or removed if there are no twins.

    Raises:
        CohortError: a column of this name has other content, such as ``monozygotic``.

    Example:
        >>> cases = [Case(name, {}, name) for name in "abc"]
        >>> [case.labels for case in mark_twins(cases, [TwinGroup((0, 2), is_identical=True)])]
        [{'twins': 'group 1'}, {'twins': None}, {'twins': 'group 1'}]
    """
    for case in cases:
        former = case.labels.get(COLUMN)
        if former is not None and not re.fullmatch(r"group \d+", str(former)):
            raise CohortError(
                f"the column {COLUMN} of the table has a label, {quoted(str(former))}, which the twins that are "
                "found would replace; rename it, or set skip_twins"
            )
    names = {position: f"group {number}" for number, group in enumerate(groups, 1) for position in group.members}
    marks: list[dict[str, Label]] = [{COLUMN: names.get(position)} if groups else {} for position in range(len(cases))]
    return [
        replace(case, labels={name: label for name, label in case.labels.items() if name != COLUMN} | mark)
        for case, mark in zip(cases, marks, strict=True)
    ]


def group_twins(cases: Sequence[Case], groups: Sequence[TwinGroup]) -> list[Case]:
    """The cases with one patient for all twins of a group, and for all other scans of their patients.

    Raises:
        SeparatedTwins: twins are in different splits already.

    Example:
        >>> cases = [Case("a", {}, "p"), Case("b", {}, "q"), Case("c", {}, "q"), Case("d", {}, "r")]
        >>> [case.patient for case in group_twins(cases, [TwinGroup((0, 1), is_identical=True)])]
        ['p', 'p', 'p', 'r']
    """
    separated = report_twins(cases, groups).separated
    if separated:
        raise SeparatedTwins(
            f"the column split separates twins, such as {separated[0]}, so they cannot become one patient; run "
            "monai-diffae list-scans without --group-duplicates, correct the column split in its table where the "
            "column twins has a group, and use that table"
        )
    patients = merge_patients([case.patient for case in cases], groups)
    return [replace(case, patient=patient) for case, patient in zip(cases, patients, strict=True)]
