"""A case: one scan of a cohort with its id, patient, split and labels; and keyed hashes of patients."""

import difflib
import hmac
import logging
import os
import re
import secrets
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkstemp
from typing import Any, Literal, TypeVar

from monai_diffae.data.atomic import disk_errors
from monai_diffae.data.fingerprints import digest
from monai_diffae.errors import CohortError, ConfigError, counted, quoted, shortened
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import MISSING_WORDS, Ids, PathLike

with on_first_use:
    from monai_diffae.data import scans
    from monai_diffae.data.formats import dicom

T = TypeVar("T")

Label = float | int | str | None
Images = PathLike | tuple[PathLike, ...]
"""The file of an image, or one file per channel; as text in a cohort that was read."""

logger = logging.getLogger(__name__)

_DECIMAL = re.compile(r"[+-]?\d+([.,]\d+)?")
_GROUPED = re.compile(r"[+-]?[\d.]+([.,]\d+)?")  # also with points between thousands
_MARKS = ("-", "--", ".", "?")  # of missing numbers; among words, a class may be called so
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_LONGEST = 100
_SAFE = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)$)[A-Za-z0-9][A-Za-z0-9_-]{0,98}[A-Za-z0-9-]")  # most ids
TWINS = "twins"
"""The column in which ``list-scans`` gives all scans of a group of twins the same text, such as ``group 1``."""

_TWINS_MARK = re.compile(r"group \d+|None|nan|<NA>|")
_MAX_QUOTED = 60  # characters of an id in an error message


@dataclass(slots=True)
class Case:
    """One scan of a cohort."""

    #: unique in the cohort: the table's own, or the name of the scan's file, with its folders if they are needed
    id: str
    #: the files of ``"image"`` and of further images, by key; the files of a tuple are channels of one image
    images: dict[str, Images]
    patient: str  #: groups the cases of one person. For DICOM it is a hash, never the PatientID
    split: str | None = None  #: ``"train"``, ``"val"``, ``"test"`` or None
    #: the other columns of the table: numbers, text, or None for missing values
    labels: dict[str, Label] = field(default_factory=dict)
    slice_index: int | None = None  #: the slice of the volume; None for a whole image
    file_name: str = ""  #: the id as a name for files, without a suffix: unique in the cohort, and safe on every system
    #: the files of its named sequences, such as ``FLAIR``, from which those of ``"image"`` are chosen
    sequences: dict[str, PathLike] = field(default_factory=dict)
    mask: Path | None = None  #: a label map of its image
    patient_is_given: bool = False  #: whether the cohort names the patient, who has no other scan

    def __post_init__(self) -> None:
        if self.id and not self.file_name:
            self.file_name = safe_file_name(self.id)

    @property
    def path(self) -> str:
        """The path of the first file of ``"image"``, which may have one file per channel."""
        image = self.images["image"]
        return os.fspath(image[0] if isinstance(image, tuple) else image)

    @property
    def first_file(self) -> Path:
        """The first file of ``"image"``."""
        return Path(self.path)

    @property
    def files(self) -> list[Path]:
        """All files of images, the first one of ``"image"`` first; not the mask."""
        images = [self.images[key] for key in sorted(self.images, key=lambda key: key != "image") if key != "mask"]
        return [Path(file) for image in images for file in (image if isinstance(image, tuple) else (image,))]

    @property
    def file(self) -> str:
        """The name, without folders, of the case's first file."""
        return os.path.basename(self.path)  # noqa: PTH119 - Path takes ten times as long for the many rows of a table

    @property
    def has_own_patient(self) -> bool:
        """Whether no patient is known, so that the case counts as a patient of its own."""
        return not self.patient_is_given and self.patient in (self.id, self.file_name)

    def item(self) -> dict[str, Any]:
        """The case as MONAI's transforms take it: paths as text, ``id``, and ``slice`` for a slice.

        Example:
            >>> Case("a", {"image": Path("scans/a.nii")}, "a", slice_index=4).item()
            {'image': 'scans/a.nii', 'slice': 4, 'id': 'a'}
        """
        item: dict[str, Any] = {
            key: [os.fspath(file) for file in image] if isinstance(image, tuple) else os.fspath(image)
            for key, image in self.images.items()
        }
        if self.slice_index is not None:
            item["slice"] = self.slice_index
        return {**item, "id": self.id}


_NEARLY_ALL = 0.9  # cases with a known patient, from which on results speak of patients


def share_known(cases: Sequence[Case]) -> float:
    """Share of cases with a known patient (unknown ones, and those of twins, are named after a case)."""
    names = {
        name if case.slice_index is None else name.rpartition("_")[0]
        for case in cases
        for name in (case.id, case.file_name)
    }
    return sum(case.patient_is_given or case.patient not in names for case in cases) / max(1, len(cases))


def are_patients_known(cases: Sequence[Case]) -> bool:
    """Whether results speak of patients: those of nearly all cases are known."""
    return share_known(cases) >= _NEARLY_ALL


def of_patients(number: int, are_known: bool) -> str:
    """What follows a number of cases: `` of 3 patients``, or `` of unknown patients``."""
    return f" of {counted(number, 'patient') if are_known else 'unknown patients'}"


def spread_cases(cases: Sequence[Case], limit: int) -> list[Case]:
    """At most ``limit`` cases, evenly spread over all of them, so that they are of many patients and classes."""
    return [cases[position] for position in spread(len(cases), limit)]


def spread(size: int, limit: int) -> list[int]:
    """At most ``limit`` positions, evenly spread over a set of this size."""
    count = min(limit, size)
    return [i * size // count for i in range(count)]


def find_cases(cases: Sequence[Case], ids: Sequence[str]) -> list[Case]:
    """Find cases by id, or by the name of their files, in the order of the ids, each once."""
    by_id = {case.file_name: case for case in cases} | {case.id: case for case in cases}
    for name in ids:
        if name not in by_id:
            similar = difflib.get_close_matches(name, by_id, n=1)
            advice = f"did you mean '{similar[0]}'?" if similar else "the table written by embed has all ids"
            raise CohortError(f"cases: the cohort has no '{shortened(name, _MAX_QUOTED + 3)}'; {advice}")
    return list({by_id[name].id: by_id[name] for name in ids}.values())


def safe_id(text: str) -> str:
    """Convert text to a safe file name of at most 100 characters: ASCII letters, digits and ``._-``."""
    if _SAFE.fullmatch(text):
        return text
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


def safe_names(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Unique safe ids, and file names without suffix, for unique texts; equal ones get a hash, in any order."""
    suffix = scans.scan_suffix
    stems = [text.removesuffix(suffix(text)) or text if "." in text else text for text in texts]
    ids = _distinct([*map(safe_id, texts)], texts)
    return ids, ids if stems == [*texts] else _distinct([*map(safe_id, stems)], texts)


def _without_suffix(id: str) -> str:
    """An id without the suffix of a scan, because the files that are named after it get their own."""
    return id[: len(id) - len(scans.scan_suffix(id))] or id


def _distinct(plain: Sequence[str], texts: Sequence[str]) -> list[str]:
    repeated = _repeated(map(str.casefold, plain))  # file systems that ignore case would confuse "A" and "a"
    return [
        f"{p[: _LONGEST - 9]}-{_short_hash(t)}" if p.casefold() in repeated else p
        for p, t in zip(plain, texts, strict=True)
    ]


def _repeated(values: Iterable[T]) -> set[T]:
    """The values that occur more than once."""
    seen, repeated = set[T](), set[T]()
    for value in values:
        (repeated if value in seen else seen).add(value)
    return repeated


def marks_twins(name: str, values: Collection[Any]) -> bool:
    """Whether a column is the one that ``list-scans`` writes, which is no label; a user's own may have its name."""
    return name == TWINS and len(values) > 0 and all(_TWINS_MARK.fullmatch(str(value)) for value in values)


def label_names(cases: Sequence[Case]) -> list[str]:
    """The names of the labels that any case has, without the mark of twins."""
    names = dict.fromkeys(name for case in cases for name in case.labels)
    return [name for name in names if not marks_twins(name, [case.labels.get(name) for case in cases])]


def as_labels(columns: Mapping[str, Sequence[str]]) -> dict[str, list[Label]]:
    """Convert columns of text to numbers if all their values are numbers; :data:`MISSING_WORDS` become None.

    Marks such as ``-`` are missing among numbers only, with a warning. What keeps numbers from being read is named.
    """
    labels = {name: _as_numbers(name, [*map(str.strip, cells)]) for name, cells in columns.items()}
    for name, values in labels.items():
        texts = Counter(value for value in values if isinstance(value, str))
        with_comma = [text for text in texts if "," in text]
        wrong = {text: count for text, count in texts.items() if not _is_number(text)}
        is_rare = 0 < sum(wrong.values()) <= max(1, texts.total() // 10) < texts.total()
        if with_comma and all((_DECIMAL if is_rare else _GROUPED).fullmatch(text) for text in texts):
            logger.warning(
                "label '%s': is read as text, because numbers such as %s have a comma; write points, or separate the "
                "columns by semicolons",
                name,
                with_comma[0],
            )
        elif is_rare:
            logger.warning(
                "label '%s': is read as text, because %d of %d values cannot be read as numbers, the first in row %d, "
                "%s; correct or empty such cells",
                name,
                sum(wrong.values()),
                texts.total(),
                values.index(next(iter(wrong))) + 1,
                quoted(next(iter(wrong))),
            )
    return labels


def _as_numbers(name: str, cells: list[str]) -> list[Label]:
    texts = Counter(cells)  # which are fewer, and each becomes one value
    codes = [text for text in texts if text.isdecimal()]
    marks = [text for text in texts if text in _MARKS]
    missing = {*MISSING_WORDS, *marks}
    is_text = any("_" in text for text in texts) or len({int(code) for code in codes}) < len(codes)
    values: dict[str, Label] = {text: None if text in MISSING_WORDS else text for text in texts}
    for kind in () if is_text or (marks and texts.keys() <= missing) else (int, float):
        try:
            values = {text: None if text in missing else kind(text) for text in texts}
        except ValueError:
            continue
        if marks:
            count = sum(texts[mark] for mark in marks)
            text = "label '%s': %s such as %s taken for missing numbers"
            logger.warning(text, name, counted(count, "cell"), marks[0])
        break
    return [values[cell] for cell in cells]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short_hash(text: str) -> str:
    return digest(text)[:8]


# -- keyed hashes of patients ------------------------------------------------------------------------------------------

KEY_FILE = ".patient_key"
"""The file with the key, in the folder of the tables that it was used for. It must not be published with them."""


@dataclass(frozen=True)
class PatientKey:
    """The key that turns patients into hashes: 32 random hexadecimal digits."""

    secret: str

    @property
    def name(self) -> str:
        """Eight digits that tell keys apart and do not reveal them; tables record them."""
        return digest(f"monai_diffae:key:{self.secret}")[:8]

    def hash(self, patient: str) -> str:
        """The first 16 hexadecimal digits of the HMAC-SHA-256 of a patient: the same for all cases of a patient."""
        message = patient.encode("utf-8", "surrogatepass")
        return hmac.new(self.secret.encode(), message, "sha256").hexdigest()[:16]


def folder_key(folder: Path) -> PatientKey:
    """The key of a folder; it is made if there is none. Only the user can read it."""
    file = folder / KEY_FILE
    if not file.is_file():
        with disk_errors(KEY_FILE):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = mkstemp(dir=folder, prefix=".tmp-")  # only the user can read it
            with os.fdopen(descriptor, "w") as stream:
                stream.write(_new_secret())
            _publish(Path(name), file)
    return _read(file)


def key_beside(table: Path, name: str | None) -> PatientKey:
    """The key with which the patients of a table were hashed; ``name`` is what the table records of it."""
    file = table.parent / KEY_FILE
    key = _read(file) if file.is_file() else None
    if key is None or key.name != name:
        raise ConfigError(
            f"{table.name}: the key of its patients is not beside it; copy {KEY_FILE} from the folder in which embed "
            "wrote the table, or embed again"
        )
    return key


def _publish(temporary: Path, file: Path) -> None:
    """Give a file its name, unless another process of the same run was first."""
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _read(file: Path) -> PatientKey:
    try:
        secret = file.read_text().strip()
    except (OSError, ValueError):
        secret = ""
    if len(secret) != 32 or not set(secret) <= set("0123456789abcdef"):
        raise ConfigError(f"{KEY_FILE}: is damaged; remove it, and embed again with overwrite")
    return PatientKey(secret)


def _new_secret() -> str:
    return secrets.token_hex(16)


def with_hashes(cases: Sequence[Case], folder: Path, ids: Ids = "names") -> list[Case]:
    """The cases with hashes for DICOM's PatientIDs or, if ``ids`` is ``"hashed"``, for all ids and patients."""
    is_private = [ids == "hashed" or _is_known_by_patient_id(case) for case in cases]
    if not any(is_private):
        return list(cases)
    key = folder_key(folder)
    by_name = {name: case.id for case in cases for name in (case.file_name, case.id)}

    def hashed(case: Case) -> Case:
        if ids == "names":
            return replace(case, patient=key.hash(case.patient))
        id = f"case-{key.hash(case.id)}"
        owner = by_name.get(case.patient)  # that an unknown patient, or that of twins, is named after
        patient = key.hash(case.patient) if owner is None else f"case-{key.hash(owner)}"
        return replace(case, id=id, file_name="", patient=patient)

    return [hashed(case) if private else case for case, private in zip(cases, is_private, strict=True)]


def _is_known_by_patient_id(case: Case) -> bool:
    return scans.may_be_dicom(case.path) and case.patient == dicom.read_patient(case.first_file)


# -- splits by patient -------------------------------------------------------------------------------------------------


SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""The names that a table may use for a split, and the standard name of each."""


SplitOrigin = Literal["training", "given", "drawn"]
"""Where a cohort's split is from: it is that of the model's training, was given with the cohort, or was drawn."""


def assign_splits(
    cases: Sequence[Case], *, val_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0
) -> list[Case]:
    """Assign every case to a split, by patient: existing splits are kept, a missing ``val`` or ``test`` is drawn."""
    # ``val`` is drawn from ``train`` and patients without a split, ``test`` from the latter only; two or more patients
    # give ``val`` at least one, unless its fraction is 0
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"val_fraction {val_fraction:g} and test_fraction {test_fraction:g} leave no training cases; lower them"
        )
    existing = {case.patient: case.split for case in cases if case.split}
    has_val, has_test = "val" in existing.values(), "test" in existing.values()
    unassigned = [p for p in {case.patient for case in cases} if p not in existing]
    pool = unassigned if has_val else unassigned + [p for p, split in existing.items() if split == "train"]
    ranked = sorted(pool, key=lambda patient: digest(f"{seed}:{patient}"))
    num_val = 0 if has_val or not val_fraction else min(max(1, round(val_fraction * len(pool))), len(pool) - 1)
    drawn = dict.fromkeys(ranked[:num_val], "val")
    rest = [p for p in ranked[num_val:] if p not in existing]
    num_test = 0 if has_test else min(round(test_fraction * len(unassigned)), len(ranked) - num_val - 1, len(rest))
    drawn |= dict.fromkeys(rest[: max(num_test, 0)], "test")
    splits = [drawn.get(case.patient, existing.get(case.patient, "train")) for case in cases]
    return [
        case if case.split == split else replace(case, split=split) for case, split in zip(cases, splits, strict=True)
    ]


def patients_in_two_splits(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases of each patient that is in several splits. Cases without a split do not count."""
    return _in_two_splits(cases, lambda case: case.patient)


def files_in_two_splits(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases of each file that is in several splits, by its path or by a symbolic or hard link."""
    return _in_two_splits(cases, lambda case: _identity(case.path))


def cases_of_one_file(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases of each image that several cases have, by the paths of its files."""
    return _groups(cases, [_normal_path(case.images["image"]) for case in cases])


def _normal_path(image: Images) -> object:
    return tuple(map(os.path.normpath, image)) if isinstance(image, tuple) else os.path.normpath(image)


def check_splits(cases: Sequence[Case], source: str) -> None:
    """Raise an error if a patient is in two splits. The message has the ids of cases, because patients are private."""
    for group in patients_in_two_splits(cases):
        raise CohortError(f"{source}: the cases {_pair(group)} belong to one patient; put all of them into one split")


def check_links(cases: Sequence[Case], source: str) -> None:
    """Raise an error if one file is in two splits under two names, by a symbolic or hard link."""
    for group in files_in_two_splits(cases):
        raise CohortError(f"{source}: the cases {_pair(group)} are links to one file; put both into one split")


def _in_two_splits(cases: Sequence[Case], key: Callable[[Case], object]) -> list[list[Case]]:
    cases = [case for case in cases if case.split is not None]
    keys = [*map(key, cases)]
    divided = _repeated(value for value, _ in {*zip(keys, (case.split for case in cases), strict=True)})
    return _groups(cases, [value if value in divided else None for value in keys])


def _groups(cases: Sequence[Case], keys: Sequence[object]) -> list[list[Case]]:
    """The cases of each key that occurs more than once; those without one (None) are left out."""
    repeated = _repeated(keys) - {None}
    groups: dict[object, list[Case]] = {}
    for case, key in zip(cases, keys, strict=True):
        if key in repeated:
            groups.setdefault(key, []).append(case)
    return [*groups.values()]


def _pair(group: Sequence[Case]) -> str:
    """The first two cases of a group that are in different splits."""
    first = group[0]
    other = next(case for case in group if case.split != first.split)
    return f"'{first.id[:60]}' ({first.split}) and '{other.id[:60]}' ({other.split})"


def _identity(file: str) -> tuple[int, int] | str | None:
    """What all names of a file have in common; None if it is missing."""
    try:
        status = os.stat(file)  # noqa: PTH116 - as above
    except OSError:
        return file if dicom.SERIES in file else None
    # some network drives have no such numbers
    return (status.st_dev, status.st_ino) if status.st_ino else file
