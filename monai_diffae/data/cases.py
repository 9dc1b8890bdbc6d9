"""A case: one scan of a cohort, with what is known of it."""

from __future__ import annotations

import difflib
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_diffae.errors import CohortError

Label = float | int | str | None
Images = Path | tuple[Path, ...]

MISSING_WORDS = ("", "NA", "N/A", "n/a", "NaN", "nan", "null")
"""What stands for no label in a table. ``None`` does not: it can be a class, such as no treatment."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_LONGEST = 100
_SHOWN = 60  # of what a user typed


@dataclass(frozen=True)
class Case:
    """One scan of a cohort.

    Attributes:
        id: unique in the cohort and safe as a file name.
        images: ``"image"`` and perhaps more; a tuple of files gives the channels of one image.
        patient: groups the cases of one person. From DICOM it is a hash, never the PatientID.
        split: ``"train"``, ``"val"``, ``"test"`` or None.
        labels: the other columns: numbers, text, or None where empty.
        slice_index: which slice of the volume; None for whole images.
    """

    id: str
    images: dict[str, Images]
    patient: str
    split: str | None = None
    labels: dict[str, Label] = field(default_factory=dict)
    slice_index: int | None = None

    @property
    def file(self) -> str:
        """The name, without folders, of the case's first file."""
        image = self.images["image"]
        return (image if isinstance(image, Path) else image[0]).name

    def item(self) -> dict[str, Any]:
        """What MONAI's transforms take: paths as text, ``slice`` where there is one, and ``id``.

        Example:
            >>> Case("a", {"image": Path("scans/a.nii")}, "a", slice_index=4).item()
            {'image': 'scans/a.nii', 'slice': 4, 'id': 'a'}
        """
        item: dict[str, Any] = {
            key: str(image) if isinstance(image, Path) else [str(p) for p in image]
            for key, image in self.images.items()
        }
        if self.slice_index is not None:
            item["slice"] = self.slice_index
        return {**item, "id": self.id}


def find_cases(cases: Sequence[Case], ids: Sequence[str]) -> list[Case]:
    """The cases of these ids, in their order, each once.

    Raises:
        CohortError: no case has the id.

    Example:
        >>> find_cases([Case("sub-04", {"image": Path("a.nii")}, "sub-04")], ["sub-4"])
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: case: the cohort has no 'sub-4'; did you mean 'sub-04'?
    """
    by_id = {case.id: case for case in cases}
    for name in ids:
        if name not in by_id:
            near = difflib.get_close_matches(name, by_id, n=1)
            advice = f"did you mean '{near[0]}'?" if near else "check the ids, which embed lists in its table"
            shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
            raise CohortError(f"case: the cohort has no '{shown}'; {advice}")
    return [by_id[name] for name in dict.fromkeys(ids)]


def safe_id(text: str) -> str:
    """Text as a file name that is harmless in any folder: ASCII letters, digits and ``._-``, at most 100 characters.

    Example:
        >>> safe_id("train/NORMAL/IM-1"), safe_id("../../etc/passwd"), safe_id("nul")
        ('train_NORMAL_IM-1', 'etc_passwd', '_nul')
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", plain)
    plain = re.sub(r"\.{2,}", "_", plain).strip("._") or "case"
    plain = plain.lstrip("-") or "case"
    if _RESERVED.match(plain):
        plain = f"_{plain}"
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 9]}-{_short_hash(text)}"


def safe_ids(texts: Sequence[str]) -> list[str]:
    """Unique safe ids for unique texts; those that become alike get a hash of their text. Order does not matter.

    Example:
        >>> safe_ids(["a/b", "a_b", "c"])
        ['a_b-c14cddc0', 'a_b-648fa9b3', 'c']
    """
    plain = [safe_id(text) for text in texts]
    alike = Counter(p.casefold() for p in plain)  # file systems that ignore case would mix up "A" and "a"
    return [
        p if alike[p.casefold()] == 1 else f"{p[: _LONGEST - 9]}-{_short_hash(t)}"
        for p, t in zip(plain, texts, strict=True)
    ]


def as_labels(columns: Mapping[str, Sequence[str]]) -> dict[str, list[Label]]:
    """Columns of text as numbers where every cell that is filled is one; :data:`MISSING_WORDS` as None.

    ``01_02`` is text, although Python reads it as 102.

    Example:
        >>> as_labels({"age": ["41", ""], "score": ["1", "2.5"], "sex": ["F", "M"]})
        {'age': [41, None], 'score': [1.0, 2.5], 'sex': ['F', 'M']}
    """
    return {name: _as_numbers([cell.strip() for cell in cells]) for name, cells in columns.items()}


def _as_numbers(cells: list[str]) -> list[Label]:
    kinds = () if any("_" in cell for cell in cells) else (int, float)
    for kind in kinds:
        try:
            return [None if cell in MISSING_WORDS else kind(cell) for cell in cells]
        except ValueError:
            continue
    return [None if cell in MISSING_WORDS else cell for cell in cells]


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
