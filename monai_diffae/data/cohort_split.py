"""Read a cohort, split it, and expand its volumes into slices: the component ``cohort`` of a configuration."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_diffae.data.cases import Case, are_patients_known, assign_splits, check_links, find_cases, of_patients
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.formats.axes import AXES, Axis
from monai_diffae.data.masks import has_mask, with_mask_labels
from monai_diffae.data.progress import Failure, SkippedCases, check_any_usable, track
from monai_diffae.data.scan_states import cohort_fingerprint
from monai_diffae.data.scans import read_shape
from monai_diffae.data.sequences import choose_sequences
from monai_diffae.errors import CohortError, ConfigError, ScanError, counted, quoted
from monai_diffae.policies import PathLike, Range, Region, check_choice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelImages:
    """What a model sees of a case."""

    #: the sequences that become channels of the image, in this order; by default the column ``image``, or all if every
    #: case has them
    sequences: Sequence[str] = ()
    encoder_sequences: Sequence[str] = ()  #: those that the encoder sees, if it sees others than the decoder makes
    region: Region = "whole"  #: cases without a mask are failures unless it is ``whole``

    def choose(self, cases: Sequence[Case]) -> tuple[list[Case], list[Failure]]:
        """The cases with these images, and those that lack one as failures."""
        chosen, failures = choose_sequences(cases, self.sequences)
        if self.encoder_sequences:
            chosen, others = choose_sequences(chosen, self.encoder_sequences, "encoder_image")
            failures += others
        if self.region != "whole":
            reason = f"has no mask, which region {self.region} needs; add it"
            failures += [Failure(case.id, case.file, reason) for case in chosen if not case.mask]
            chosen = [replace(case, images={**case.images, "mask": case.mask}) for case in chosen if case.mask]
        check_any_usable(len(chosen), failures, "scans")
        return chosen, failures


@dataclass(frozen=True)
class SplitCohort:
    """A cohort in which every case has a split; for a 2D model, its volumes are expanded into slices."""

    cases: list[Case]  #: all cases, in order
    #: cases that lack an image or a mask, or whose header cannot be read
    failures: list[Failure] = field(default_factory=list)
    fingerprint: str = ""  #: SHA-256 of ids, file sizes and splits, from which no name can be read
    #: whether the split was drawn at random, because the cohort did not name it, or not all of it
    is_drawn: bool = False
    slice_axis: Axis = "axial"  #: along which volumes are sliced for a 2D model

    def with_mask_labels(self) -> "SplitCohort":
        """The cohort with labels from the masks of its cases, see :func:`~monai_diffae.data.masks.with_mask_labels`."""
        return replace(self, cases=with_mask_labels(self.cases, self.slice_axis))

    def split(self, name: str) -> list[Case]:
        """The cases of ``train``, ``val`` or ``test``."""
        return [case for case in self.cases if case.split == name]

    def counts(self) -> dict[str, int]:
        """The number of scans, of patients if they are known, and of images (a scan may be several slices) by split.

        Example:
            >>> SplitCohort([Case(f"a-{k}", {}, "p", "train", slice_index=k) for k in (3, 5)]).counts()
            {'scans': 1, 'patients': 1, 'train': 2, 'val': 0, 'test': 0}
        """
        return {
            "scans": len({tuple(sorted(case.images.items())) for case in self.cases}),
            **({"patients": len({case.patient for case in self.cases})} if are_patients_known(self.cases) else {}),
            **{name: len(self.split(name)) for name in ("train", "val", "test")},
        }

    def choose(self, ids: Sequence[str] = (), split: str | None = None, limit: int | None = None) -> list[Case]:
        """Return the cases with these ids, in their order; without ids, the first ``limit`` cases of a split.

        Args:
            ids: ids of cases; numbers are read as text.
            split: ``train``, ``val`` or ``test``; None: all cases.
            limit: at most this many cases of the split.

        Raises:
            CohortError: no case has such an id, or none is in the split.
        """
        if ids:
            reasons = {failure.case_id: failure.reason for failure in self.failures}
            if unread := [name for name in map(str, ids) if name in reasons]:
                raise CohortError(f"cases: '{unread[0]}' cannot be used ({reasons[unread[0]]}); omit it")
            return find_cases(self.cases, [str(name) for name in ids])
        cases = [case for case in self.cases if split in (None, case.split)][:limit]
        if self.cases and not cases:
            raise CohortError(f"no case is in the split '{split}'; choose another split, or omit it")
        return cases

    def items(self, name: str) -> list[dict[str, Any]]:
        """The cases of a split as MONAI's transforms take them.

        Raises:
            CohortError: the split is empty.
        """
        items = [{**case.item(), "index": index} for index, case in enumerate(self.split(name))]
        if self.cases and not items:
            raise CohortError(
                f"no case is in the split '{name}': training needs at least two patients; "
                f"check the column split and {name}_fraction"
            )
        logger.info("%s: %s", name, counted(len(items), "image"))
        return items


def split_cohort(
    dataset_dir: PathLike,
    spatial_dims: int = 2,
    columns: Mapping[str, str] | None = None,
    image_keys: Sequence[str] = ("image",),
    patient_pattern: str | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    slice_axis: Axis = "axial",
    slice_range: Range = (0.0, 1.0),
    slice_step: int = 1,
    images: ModelImages = ModelImages(),
) -> SplitCohort:
    """Read a cohort, split it by patient and, for a 2D model, expand its volumes into slices.

    Volumes whose header cannot be read are skipped with a warning.

    Args:
        dataset_dir: a folder, a CSV/TSV, a MONAI datalist JSON or a single scan, see
            :func:`~monai_diffae.data.cohorts.read_cohort`.
        spatial_dims: 2 or 3, the dimensions of the model.
        columns: names that the table uses for image, id, patient or split.
        image_keys: the columns with images.
        patient_pattern: a regular expression that finds the patient in the image's path.
        val_fraction: fraction of the patients for ``val``, if the table has no split.
        test_fraction: fraction of the patients for ``test``, if the table has no split.
        seed: random seed of the split.
        slice_axis: ``axial``, ``coronal`` or ``sagittal``; see :func:`~monai_diffae.data.cohort_split.expand_slices`.
        slice_range: the part of the axis to use, in 0..1, from inferior, posterior or left.
        slice_step: use every ``slice_step``-th slice of that part.
        images: what the model sees of a case.

    Raises:
        CohortError: there are no usable cases, or one file is in two splits.
    """
    if dataset_dir == "???":  # MONAI's tools build all parts of a configuration, also without data
        return SplitCohort([])
    keys = [key for key in image_keys if key != "encoder_image" or not images.encoder_sequences]
    listed = read_cohort(dataset_dir, columns=columns, image_keys=keys, patient_pattern=patient_pattern)
    cases = assign_splits(listed, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    check_links(cases, Path(dataset_dir).name)
    drawn = [after.split for before, after in zip(listed, cases, strict=True) if before.split is None]
    is_drawn = len(drawn) == len(cases) or set(drawn) > {"train"}
    cases, lacking = images.choose(cases)
    fingerprint = cohort_fingerprint(cases)
    failures: list[Failure] = []
    patients = of_patients(len({case.patient for case in cases}), are_patients_known(cases))
    scans = f"{counted(len(cases), 'scan')}{patients}"
    selected = ""
    if spatial_dims == 2:
        slices, failures = expand_slices(cases, axis=slice_axis, range=slice_range, step=slice_step)
        if images.region != "whole":
            slices = [case for case in track(slices, "reading masks") if has_mask(case, slice_axis)]
            known = {*map(_volume_id, slices), *(failure.case_id for failure in failures)}
            reason = "no slice has a mask that is not empty and can be read; check the mask and slice_range"
            failures += [Failure(case.id, case.file, reason) for case in cases if case.id not in known]
        if len(slices) > len(cases) and (tuple(slice_range), slice_step) != ((0, 1), 1):
            selected = f", from volumes with slice_range {list(slice_range)} and slice_step {slice_step}"
        cases = slices
    failures, skipped = [*lacking, *failures], SkippedCases()
    for failure in failures:
        skipped.log(failure)
    check_any_usable(len(cases), failures, "scans")
    logger.info("%s: %s%s", scans, counted(len(cases), "image"), selected)
    return SplitCohort(cases, failures, fingerprint, is_drawn, slice_axis)


# -- slices of volumes -------------------------------------------------------------------------------------------------

_MANY = 2_000  # scans; to read the headers of more takes seconds
_LETTERS: dict[Axis, str] = {"sagittal": "x", "coronal": "y", "axial": "z"}  # before a slice's number, in its id


def expand_slices(
    cases: Sequence[Case], *, axis: Axis = "axial", range: Range = (0.0, 1.0), step: int = 1
) -> tuple[list[Case], list[Failure]]:
    """Expand volumes into one case per slice, by their headers; those that cannot be read are failures."""
    check_choice("axis", axis, AXES)
    slice_indices(1, range, step)  # an error about the arguments comes before a scan is read
    expanded: list[Case] = []
    failures: list[Failure] = []
    for case in track(cases, "reading the headers of all scans") if len(cases) > _MANY else cases:
        try:
            shape = read_shape(case.first_file)
        except ScanError as error:
            failures.append(Failure(case.id, case.file, str(error)))
            continue
        if len(shape) == 2:
            expanded.append(case)
            continue
        for k in slice_indices(shape[AXES[axis]], range, step):
            name = f"{_LETTERS[axis]}{k:03d}"
            expanded.append(replace(case, id=f"{case.id}_{name}", file_name=f"{case.file_name}_{name}", slice_index=k))
    twice = next((id for id, count in Counter(case.id for case in expanded).items() if count > 1), None)
    if twice is not None:
        raise CohortError(f"the id {quoted(twice)} is that of a scan and of a slice of another scan; rename one")
    return expanded, failures


def slice_indices(length: int, range: Range = (0.0, 1.0), step: int = 1) -> list[int]:
    """Every ``step``-th slice in a part of a volume's axis: (0.25, 0.75) is the middle half."""
    low, high = range
    if not 0 <= low < high <= 1 or step < 1:
        raise ConfigError(f"slices: range {tuple(range)} must lie within 0..1, and step {step} must be at least 1")
    indices: list[int] = np.arange(math.floor(low * length), math.ceil(high * length), step).tolist()
    return indices


def gather_slices(expanded: Sequence[Case], failures: Sequence[Failure]) -> tuple[dict[str, list[Case]], list[Failure]]:
    """The usable slices of each volume, by its id, and one failure for each volume without any.

    Some slices of a volume may be unusable because nothing is in them.
    """
    reasons = {failure.case_id: failure for failure in failures}
    volumes: dict[str, list[Case]] = {}
    failed: dict[str, Failure] = {}
    for case in expanded:
        name = _volume_id(case)
        if case.id not in reasons:
            volumes.setdefault(name, []).append(case)
        elif case.slice_index is not None:
            failure = reasons.pop(case.id)
            failed.setdefault(
                name, replace(failure, case_id=name, reason=f"slice {case.slice_index}: {failure.reason}")
            )
    return volumes, [*reasons.values(), *(failure for name, failure in failed.items() if name not in volumes)]


def whole_scan(case: Case) -> Case:
    """The scan that a slice was taken from, without its slice; a whole image unchanged."""
    if case.slice_index is None:
        return case
    return replace(case, id=_volume_id(case), file_name=case.file_name.rpartition("_")[0], slice_index=None)


def _volume_id(case: Case) -> str:
    """The id of a slice's volume, or a whole image's own id."""
    return case.id if case.slice_index is None else case.id.rpartition("_")[0]
