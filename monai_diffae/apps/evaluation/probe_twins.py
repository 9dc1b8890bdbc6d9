"""Twins in a table of embeddings: cases of different patients with nearly the same z_sem."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from monai_diffae.data.cases import Case
from monai_diffae.data.embeddings import patients_of, z_matrix
from monai_diffae.data.inspection.twins import TwinGroup, TwinReport, linked_groups, merge_patients, report_twins
from monai_diffae.errors import ConfigError, counted
from monai_diffae.latents.neighbors import near_pairs
from monai_diffae.latents.probing import ProbeSettings
from monai_diffae.latents.targets import class_name, missing

logger = logging.getLogger(__name__)

_EXAMPLES = 3


@dataclass(frozen=True, eq=False)
class TableTwins:
    """The twins of a table."""

    table: pd.DataFrame
    groups: list[TwinGroup]  # rows with nearly the same z_sem
    report: TwinReport  # what they mean for splits and labels
    is_grouped: bool = False  # whether twins count as one patient

    @classmethod
    def find(cls, table: pd.DataFrame, targets: Sequence[str], splits: Sequence[str] = ()) -> "TableTwins":
        """Find the twins among the cases of some splits (none given: of all), and compare their labels."""
        cases = _cases(table, targets)
        used = [row for row, case in enumerate(cases) if not splits or case.split in splits]
        z = z_matrix(table)
        linked: list[tuple[int, int]] = []
        if used:
            pairs = near_pairs(z[used], [cases[row].patient for row in used])
            linked = [(used[first], used[second]) for first, second in pairs]
        groups = linked_groups(linked, [row.tobytes() for row in z])
        return cls(table, groups, report_twins(cases, groups))

    def warn(self, is_split: bool) -> str:
        """Warn of twins with different labels or on both sides of a probe, and return what a verdict says."""
        pairs = [] if self.is_grouped else self.report.separated if is_split else self.report.other_patients
        what = f"{counted(len(pairs), 'group of cases')} of different patients with nearly the same z_sem"
        if pairs:
            examples = "; ".join(" = ".join(pair.ids) for pair in pairs[:_EXAMPLES])
            logger.warning(
                "%s, such as %s: they are probably the same image, so scores may be too high; monai-diffae probe "
                "--group-duplicates keeps them together", what, examples,
            )  # fmt: skip
        for line in self.report.contradictions():
            logger.warning("%s", line)
        return f"There are {what}, probably the same image: scores may be too high." if pairs else ""

    def grouped(self) -> "TableTwins":
        """The table with one patient for the twins of a group."""
        if "patient" not in self.table:
            raise ConfigError("group_duplicates: the table has no column patient; embed the cohort again")
        patients = merge_patients([case.patient for case in _cases(self.table, ())], self.groups)
        return replace(self, table=self.table.assign(patient=patients), is_grouped=True)

    def settings(self, settings: ProbeSettings) -> ProbeSettings:
        """Settings with cross-validation instead of the table's split, if that separates twins and was not chosen."""
        is_split_usable = not (self.is_grouped and self.report.separated)
        return settings if is_split_usable or settings.evaluation is not None else replace(settings, evaluation="cv")


def _cases(table: pd.DataFrame, targets: Sequence[str]) -> list[Case]:
    ids = [str(value) for value in (table["id"] if "id" in table else range(len(table)))]
    patients = patients_of(table)
    splits = table["split"].astype(str).tolist() if "split" in table else [None] * len(ids)
    columns = {name: table[name].tolist() for name in targets}
    is_missing = {name: missing(values) for name, values in columns.items()}
    return [
        Case(
            id=ids[row], images={}, split=splits[row], patient=str(patients[row]),
            labels={name: None if is_missing[name][row] else _label(values[row]) for name, values in columns.items()}
        )
        for row in range(len(ids))
    ]  # fmt: skip


def _label(value: object) -> float | str:
    is_fraction = isinstance(value, (float, np.floating)) and not float(value).is_integer()
    return float(value) if is_fraction else class_name(value)  # type: ignore[arg-type]
