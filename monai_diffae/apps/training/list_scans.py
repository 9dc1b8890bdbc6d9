"""The command ``list-scans``: list the scans of a folder, with their labels, as a cohort table."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from monai_diffae.apps.command import command
from monai_diffae.apps.commands import command_line
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import NONE_GIVEN, Columns
from monai_diffae.data.cases import with_hashes
from monai_diffae.errors import ConfigError
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Ids

with on_first_use:
    from monai_diffae.data.inspection import listing as listings
    from monai_diffae.data.inspection import survey as surveys
    from monai_diffae.data.inspection import twins


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
) -> Result:
    r"""List the scans of a folder as a table with their labels, which all other commands take.

    Labels come from class folders (``benign/`` and ``malignant/``, perhaps below ``train/`` and ``test/``), from a
    table of participants or scans, and from BIDS names (session and suffix). Label maps beside the scans
    (``a_seg.nii.gz``, ``labelsTr/``) are left out.

    Every scan is read to find twins: scans that are identical, or nearly so (saved again, resized, brighter). They are
    marked in the column ``twins``. Twins in different splits, and twins with different labels, are listed.

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
        The table, and what was found and left out; as ``listing`` and ``appearance`` the scans.

    Raises:
        ConfigError: ``out`` exists with other content or is not a ``.csv`` or ``.tsv``, or ``group_duplicates`` is
            given together with ``skip_twins``.
        CohortError: there are no scans, the table does not fit them, the folder has several sequences of patients that
            are not known, or twins that are to be one patient are in different splits.
        MachineError: the table cannot be written.
    """
    if group_duplicates and skip_twins:
        raise ConfigError("group_duplicates: needs the scans to be read, to find twins; omit skip_twins")
    sources = listings.Sources(labels_from_folders, label_column, table, id_column, patient_pattern)
    headers = out.parent / f".{out.name}.headers"  # which stays if this run is killed
    listing = listings.list_cases(cohort, sources, columns, headers)
    listing = replace(listing, cases=with_hashes(listing.cases, out.parent, ids))
    if skip_twins:
        written, appearance, report = listing, surveys.look_at(listing.cases, limit=32), None
    else:
        cases = twins.mark_twins(listing.cases, [])
        appearance = surveys.look_at(cases)
        groups = twins.find_twins(appearance.prints, [case.patient for case in cases])
        listing = replace(listing, cases=twins.group_twins(cases, groups) if group_duplicates else cases)
        written = replace(listing, cases=twins.mark_twins(listing.cases, groups))
        report = replace(twins.report_twins(cases, groups), is_grouped=group_duplicates)
    table = listings.write_listing(written, out, overwrite=overwrite)
    shutil.rmtree(headers, ignore_errors=True)
    found = {"twins": None if report is None else report.figures()}
    return Result(
        table,
        {"table": str(table), **listing.figures(), **appearance.figures(), **found},
        [*listing.lines(), *appearance.lines(), *(() if report is None else report.lines())],
        next=[f"next: {command_line('plan', {'cohort': table, 'colour': 'grey' if appearance.colour else None})}"],
        content={"listing": listing, "appearance": appearance},
    )
