"""Cases that could not be used: errors as values, so that one bad scan never stops a cohort."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from monai_diffae.data.atomic import write_atomic


@dataclass(frozen=True)
class Failure:
    """One case that could not be used.

    Attributes:
        case_id: the case's id.
        file: the name of its (first) file, without folders: they often carry patients' names.
        reason: one line: what is wrong and what to do.
    """

    case_id: str
    file: str
    reason: str


def write_failures(path: str | os.PathLike[str], failures: Iterable[Failure]) -> Path:
    """Write the failures as a CSV with the columns ``case_id, file, reason``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = write_failures(Path(folder) / "failures.csv", [Failure("c1", "c1.nii", "c1.nii: empty file")])
        ...     print(out.read_text().strip())
        case_id,file,reason
        c1,c1.nii,c1.nii: empty file
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["case_id", "file", "reason"])
            table.writerows([f.case_id, f.file, f.reason] for f in failures)

    return write_atomic(path, write)
