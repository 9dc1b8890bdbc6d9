"""The command ``verify``: find what is wrong with a cohort before a model is trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult
from monai_diffae.apps.settings import Reading
from monai_diffae.errors import counted

if TYPE_CHECKING:
    from monai_diffae.data.verification import Verification

_EXAMPLES = 3
_TABLE, _PICTURE, _SAVED = "verify.csv", "overview.png", "readings.jsonl"


@dataclass(frozen=True)
class VerifyResult(CommandResult):
    """The result of :func:`verify`.

    Attributes:
        verification: a verdict on each case, and what is wrong with the whole.
        folder: the folder with the table and the picture; None: nothing was written.
    """

    verification: Verification
    folder: Path | None = None

    def lines(self) -> Iterator[str]:
        """Counts, geometry, each kind of problem with examples, twins, and the files."""
        from monai_diffae.apps.training.survey_lines import survey_lines

        checked = self.verification
        counts = f"{checked.count('ok')} ok, {checked.count('doubtful')} doubtful, {checked.count('failed')} failed"
        yield f"{counted(len(checked.verdicts), 'scan')}: {counts}"
        if checked.survey is not None:
            yield from survey_lines(checked.survey)
        remedies = {finding.kind: finding.remedy for verdict in checked.verdicts for finding in verdict.findings}
        for kind, is_failure, ids in checked.kinds():
            examples = ", ".join(ids[:_EXAMPLES]) + (", ..." if len(ids) > _EXAMPLES else "")
            yield f"{'failed' if is_failure else 'doubtful'}: {kind}: {len(ids)} ({examples}); {remedies[kind]}"
        if checked.twins is None:
            yield "only headers were read: damaged voxels and twins are found without --headers"
        else:
            yield from checked.twins.lines()
        if checked.fingerprint is not None:
            yield f"fingerprint: {checked.fingerprint}"
        if self.folder is not None:
            yield from (str(self.folder / name) for name in (_TABLE, _PICTURE))

    def figures(self) -> dict[str, Any]:
        """The counts, the geometry, the problems with the ids of their cases, and the twins."""
        checked = self.verification
        return {
            **{judgement: checked.count(judgement) for judgement in ("ok", "doubtful", "failed")},
            "problems": [
                {"kind": kind, "is_failure": is_failure, "ids": ids} for kind, is_failure, ids in checked.kinds()
            ],
            "geometry": None if checked.survey is None else checked.survey.summary(),
            "twins": None if checked.twins is None else checked.twins.figures(),
            "fingerprint": checked.fingerprint,
            "folder": None if self.folder is None else str(self.folder),
        }

    @property
    def incomplete(self) -> str | None:
        """How many scans cannot be used, and how many groups of twins are in different splits."""
        checked, problems = self.verification, []
        if num_failed := checked.count("failed"):
            problems.append(f"{num_failed} of {len(checked.verdicts)} scans cannot be used")
        if checked.twins is not None and (number := len(checked.twins.separated)):
            problems.append(f"{counted(number, 'group of twins')} {'is' if number == 1 else 'are'} in different splits")
        return ", and ".join(problems) or None


@command
def verify(
    cohort: Path,
    out: Path | None = None,
    *,
    headers: bool = False,
    patient_pattern: str | None = None,
    reading: Reading = Reading(),
) -> VerifyResult:
    r"""Find what is wrong with a cohort before a model is trained on it.

    Every scan is read completely: it must be whole, finite, not constant, and of the kind of the others. Scans that can
    be read, but may not be what was measured, are doubtful: without orientation, with uneven, tilted or missing slices,
    with unusual geometry, or in colour among grey scans. All scans of a patient or a file that is in two splits are
    listed as failed. Twins (scans that are identical or nearly so) are listed, and those in different splits count as a
    problem. Otherwise, a model would be tested on what it was trained on.

    With ``out``, ``verify.csv`` has one row per case: verdict, reason, remedy, geometry, intensities, twins and the
    SHA-256 of its files. ``overview.png`` shows this as a picture, without names. ``readings.jsonl`` keeps what was
    read, with small versions of the scans: a run that was stopped resumes, and later ones read only new and changed
    scans.

    Exit codes: 0 if all scans can be used, 3 if some cannot or twins are in different splits, 4 if none can be read.

    Args:
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results; by default nothing is written.
        headers: Read headers only, which is fast: damaged voxels and twins are not found.
        patient_pattern: Regular expression that finds the patient in the path of a scan, e.g. ``patient\d+``.
        reading: How scans are found and read.

    Returns:
        The verdicts, and what is wrong with the whole cohort.

    Raises:
        CohortError: no scan can be read, or the table is wrong.
        ConfigError: ``out`` holds a ``verify.csv`` that this command has not written.
        MachineError: the results cannot be written, or a worker died.

    Example:
        >>> verify("no_such_folder")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: no_such_folder: there is no such folder, table or scan; check the path ...
    """
    from monai_diffae.apps.training.verify_files import check_table, write_verification
    from monai_diffae.data.cohorts import read_cohort
    from monai_diffae.data.failures import Failure
    from monai_diffae.data.survey import none_usable
    from monai_diffae.data.verification import SavedReadings, read_cases, verify_cases

    if out is not None:
        check_table(out / _TABLE)
    cases = read_cohort(cohort, columns=reading.columns, patient_pattern=patient_pattern, refuse_leaks=False)
    saved = None if out is None else SavedReadings(out / _SAVED, headers)
    readings = read_cases(cases, headers, reading.workers_for(len(cases)), saved)
    verification = verify_cases(cases, readings)
    if out is not None:
        write_verification(verification, out / _TABLE, out / _PICTURE)
    if all(found.error for found in readings):
        raise none_usable(
            [Failure(case.id, case.file, found.error) for case, found in zip(cases, readings, strict=True)]
        )
    return VerifyResult(verification, out)
