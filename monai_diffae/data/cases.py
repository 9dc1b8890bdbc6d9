"""A case: one scan of a cohort with its id, patient, split and labels; and a row, from which it is made."""

from __future__ import annotations

import difflib
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_diffae.data.fingerprints import digest
from monai_diffae.data.scans import scan_suffix
from monai_diffae.errors import CohortError
from monai_diffae.policies import MISSING_WORDS

Label = float | int | str | None
Images = Path | tuple[Path, ...]

logger = logging.getLogger(__name__)

_DECIMAL = re.compile(r"[+-]?\d+([.,]\d+)?")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_LONGEST = 100
_MAX_QUOTED = 60  # characters of an id in an error message


@dataclass(frozen=True)
class Case:
    """One scan of a cohort.

    Attributes:
        id: unique in the cohort: the table's own, or the name of the scan's file, with its folders if they are needed.
        images: the files of ``"image"`` and of further images, by key; the files of a tuple are channels of one image.
        patient: groups the cases of one person. For DICOM it is a hash, never the PatientID.
        split: ``"train"``, ``"val"``, ``"test"`` or None.
        labels: the other columns of the table: numbers, text, or None for missing values.
        slice_index: the slice of the volume; None for a whole image.
        file_name: the id as a name for files, without a suffix: unique in the cohort, and safe on every system.
    """

    id: str
    images: dict[str, Images]
    patient: str
    split: str | None = None
    labels: dict[str, Label] = field(default_factory=dict)
    slice_index: int | None = None
    file_name: str = ""

    def __post_init__(self) -> None:
        if not self.file_name:
            object.__setattr__(self, "file_name", safe_file_name(self.id))

    @property
    def first_file(self) -> Path:
        """The first file of ``"image"``."""
        return first_file(self.images)

    @property
    def file(self) -> str:
        """The name, without folders, of the case's first file."""
        return self.first_file.name

    @property
    def has_own_patient(self) -> bool:
        """Whether no patient is known, so that the case counts as a patient of its own."""
        return self.patient in (self.id, self.file_name)

    def item(self) -> dict[str, Any]:
        """The case as MONAI's transforms take it: paths as text, ``id``, and ``slice`` for a slice.

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


@dataclass(frozen=True)
class Row:
    """One row of a table, or one scan of a folder."""

    images: dict[str, Images]
    id: str | None = None
    patient: str | None = None
    split: str | None = None
    labels: dict[str, Label] = field(default_factory=dict)

    @property
    def first(self) -> Path:
        """The first file of ``"image"``."""
        return first_file(self.images)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of ``"image"``."""
        image = self.images["image"]
        return image if isinstance(image, tuple) else (image,)


def first_file(images: Mapping[str, Images]) -> Path:
    """The first file of ``"image"``, which may have one file per channel."""
    image = images["image"]
    return image if isinstance(image, Path) else image[0]


def spread_cases(cases: Sequence[Case], limit: int) -> list[Case]:
    """At most ``limit`` cases, evenly spread over all of them, so that they are of many patients and classes."""
    count = min(limit, len(cases))
    return [cases[i * len(cases) // count] for i in range(count)]


def find_cases(cases: Sequence[Case], ids: Sequence[str]) -> list[Case]:
    """Find cases by id, or by the name of their files, in the order of the ids, each once."""
    by_id = {case.file_name: case for case in cases} | {case.id: case for case in cases}
    for name in ids:
        if name not in by_id:
            close_matches = difflib.get_close_matches(name, by_id, n=1)
            advice = (
                f"did you mean '{close_matches[0]}'?" if close_matches else "the table written by embed has all ids"
            )
            quoted = name if len(name) <= _MAX_QUOTED else f"{name[:_MAX_QUOTED]}..."
            raise CohortError(f"cases: the cohort has no '{quoted}'; {advice}")
    return list({by_id[name].id: by_id[name] for name in ids}.values())


def safe_id(text: str) -> str:
    """Convert text to a safe file name of at most 100 characters: ASCII letters, digits and ``._-``.

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


def safe_file_name(id: str) -> str:
    """Convert an id to a safe file name without suffix. Unique ids have unique names: one that differs gets a hash."""
    plain = safe_id(_without_suffix(id))
    return plain if plain == id else f"{plain[: _LONGEST - 9].lstrip('_')}-{_short_hash(id)}"


def safe_file_names(ids: Sequence[str]) -> list[str]:
    """Convert unique ids to unique safe file names without suffix; ids with the same name get a hash."""
    return _distinct([safe_id(_without_suffix(id)) for id in ids], ids)


def safe_ids(texts: Sequence[str]) -> list[str]:
    """Convert unique texts to unique safe ids; texts with the same safe id get a hash. The order does not matter."""
    return _distinct([safe_id(text) for text in texts], texts)


def _without_suffix(id: str) -> str:
    """An id without the suffix of a scan, because the files that are named after it get their own."""
    return id[: len(id) - len(scan_suffix(id))] or id


def _distinct(plain: Sequence[str], texts: Sequence[str]) -> list[str]:
    counts = Counter(p.casefold() for p in plain)  # file systems that ignore case would confuse "A" and "a"
    return [
        p if counts[p.casefold()] == 1 else f"{p[: _LONGEST - 9]}-{_short_hash(t)}"
        for p, t in zip(plain, texts, strict=True)
    ]


def as_labels(columns: Mapping[str, Sequence[str]]) -> dict[str, list[Label]]:
    """Convert columns of text to numbers if all their values are numbers; :data:`MISSING_WORDS` become None.

    Example:
        >>> as_labels({"age": ["41", ""], "score": ["1", "2.5"], "sex": ["F", "M"]})
        {'age': [41, None], 'score': [1.0, 2.5], 'sex': ['F', 'M']}
    """
    labels = {name: _as_numbers([cell.strip() for cell in cells]) for name, cells in columns.items()}
    for name, values in labels.items():
        texts = [value for value in values if isinstance(value, str)]
        if any("," in text for text in texts) and all(_DECIMAL.fullmatch(text) for text in texts):
            logger.warning(
                "label '%s': is read as text, because numbers such as %s have a comma; write points, or separate the "
                "columns by semicolons", name, next(text for text in texts if "," in text),
            )  # fmt: skip
    return labels


def _as_numbers(cells: list[str]) -> list[Label]:
    codes = {cell for cell in cells if cell.isdecimal()}
    is_text = any("_" in cell for cell in cells) or len({int(code) for code in codes}) < len(codes)
    for kind in () if is_text else (int, float):
        try:
            return [None if cell in MISSING_WORDS else kind(cell) for cell in cells]
        except ValueError:
            continue
    return [None if cell in MISSING_WORDS else cell for cell in cells]


def _short_hash(text: str) -> str:
    return digest(text)[:8]
