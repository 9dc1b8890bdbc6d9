"""The command ``list-scans``: list the scans of a folder, with their labels, as a cohort table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult
from monai_diffae.apps.settings import NONE_GIVEN, Columns
from monai_diffae.errors import ConfigError
from monai_diffae.policies import Ids

if TYPE_CHECKING:
    from monai_diffae.data.listing import Appearance, Listing
    from monai_diffae.data.twin_reports import TwinReport


@dataclass(frozen=True)
class ListScansResult(CommandResult):
    """The result of :func:`list_scans`.

    Attributes:
        table: the cohort table.
        listing: the scans, with their labels, and what was left out.
        appearance: what the scans look like, or some of them if twins are not sought.
        twins: identical and nearly identical scans; None: not sought.
    """

    table: Path
    listing: Listing
    appearance: Appearance
    twins: TwinReport | None = None

    def lines(self) -> Iterator[str]:
        """What was found, the table and the next command."""
        from monai_diffae.apps.command_lines import command_line

        yield from self.listing.lines()
        yield from self.appearance.lines()
        if self.twins is not None:
            yield from self.twins.lines()
        yield str(self.table)
        colour = "grey" if self.appearance.colour else None
        yield f"next: {command_line('plan', {'cohort': self.table, 'colour': colour})}"

    def figures(self) -> dict[str, Any]:
        """The table and the counts."""
        twins = None if self.twins is None else self.twins.figures()
        return {"table": str(self.table), **self.listing.figures(), **self.appearance.figures(), "twins": twins}


@command
def list_scans(
    cohort: Path,
    out: Path,
    *,
    labels_from_folders: Annotated[bool | None, Parameter(negative="--no-labels-from-folders")] = None,
    label_column: str = "label",
    table: Path | None = None,
    id_column: str | None = None,
    patient_pattern: str | None = None,
    columns: Columns = NONE_GIVEN,
    ids: Ids = "names",
    group_duplicates: bool = False,
    skip_twins: bool = False,
    overwrite: bool = False,
) -> ListScansResult:
    r"""List the scans of a folder as a table with their labels, which all other commands take.

    Labels come from class folders (``benign/`` and ``malignant/``, perhaps below ``train/`` and ``test/``), from a
    table of participants or scans, and from BIDS names (session and suffix). Label maps beside the scans
    (``a_seg.nii.gz``, ``labelsTr/``) are left out.

    Every scan is read to find twins: scans that are identical, or nearly so (saved again, resized, slightly cropped,
    brighter). They are marked in the column ``twins``. Twins in different splits, and twins with different labels, are
    listed.

    Args:
        cohort: Folder, which is searched with its subfolders; or a CSV/TSV, MONAI datalist or single scan.
        out: The new table, a ``.csv`` or ``.tsv``; its paths are relative to its folder.
        labels_from_folders: Use the names of folders as labels, or do not; by default, they are used if they look like
            classes.
        label_column: Name of the column for labels from folders.
        table: CSV or TSV with labels, joined to the scans by id, file name, BIDS subject, folder or DICOM PatientID; by
            default ``participants.tsv`` in the folder, if it is there.
        id_column: Column of ``table`` that names the scans or patients, e.g. ``MRID``; by default found by its name.
        patient_pattern: Regular expression that finds the patient in the path of a scan, e.g. ``patient\d+``.
        columns: Names that the table (``cohort`` or ``table``) uses for image, id, patient or split, e.g.
            ``patient=subject``.
        ids: ``names`` takes the names of the files as ids, and these are in all results; ``hashed`` replaces ids and
            patients by hashes, whose key is in ``.patient_key`` beside the table. The table tells which scan is which.
        group_duplicates: Make twins one patient, so that no split separates them.
        skip_twins: Do not read the scans, and find no twins.
        overwrite: Replace another file of this name.

    Returns:
        The table, and what was found and left out.

    Raises:
        ConfigError: ``out`` exists with other content or is not a ``.csv`` or ``.tsv``, or ``group_duplicates`` is
            given together with ``skip_twins``.
        CohortError: there are no scans, the table does not fit them, or twins that are to be one patient are in
            different splits.
        MachineError: the table cannot be written.

    Example:
        >>> list_scans("no_such_folder", "scans.csv")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: no_such_folder: there is no such folder, table or scan; check the path ...
    """
    if group_duplicates and skip_twins:
        raise ConfigError("group_duplicates: needs the scans to be read, to find twins; omit skip_twins")
    from monai_diffae.data.listing import (
        Sources,
        group_twins,
        list_cases,
        look_at,
        mark_twins,
        with_hashes,
        write_listing,
    )
    from monai_diffae.data.twin_reports import report_twins
    from monai_diffae.data.twins import find_twins_among

    sources = Sources(labels_from_folders, label_column, table, id_column, patient_pattern)
    listing = list_cases(cohort, sources, columns)
    listing = replace(listing, cases=with_hashes(listing.cases, out.parent, ids))
    if skip_twins:
        appearance = look_at(listing.cases, limit=32)
        return ListScansResult(write_listing(listing, out, overwrite=overwrite), listing, appearance)
    cases = mark_twins(listing.cases, [])
    appearance = look_at(cases)
    groups = find_twins_among(cases, appearance.fingerprints)
    listing = replace(listing, cases=group_twins(cases, groups) if group_duplicates else cases)
    marked = replace(listing, cases=mark_twins(listing.cases, groups))
    return ListScansResult(
        write_listing(marked, out, overwrite=overwrite),
        listing,
        appearance,
        report_twins(listing.cases, groups),
    )
