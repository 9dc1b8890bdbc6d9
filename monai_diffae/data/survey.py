"""Survey the sizes and spacings of a cohort's scans from their headers, and on request read the scans completely."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure
from monai_diffae.data.fingerprints import Fingerprint, scan_fingerprint
from monai_diffae.data.scans import Axis, check_channels, read_geometry, read_scan
from monai_diffae.data.slices import slice_shape
from monai_diffae.errors import CohortError, ScanError
from monai_diffae.policies import Colour

_OUTLIER_RATIO = 2.0  # ratio of a value to the median, or of the median to a value, beyond which a scan is an outlier


@dataclass(frozen=True, eq=False)
class Survey:
    """Sizes and spacings of a cohort's scans of one kind: volumes or 2D images.

    Attributes:
        ids: (N,) ids of the scans.
        sizes: (N, D) voxels along R, A and S of volumes, or rows and columns of images.
        spacings_mm: (N, D) voxel spacings in mm.
        failures: cases whose header cannot be read, or that are of the other kind.
        fingerprints: of the scans that were read completely, by id.
    """

    ids: list[str]
    sizes: NDArray[np.int64]
    spacings_mm: NDArray[np.float64]
    failures: list[Failure] = field(default_factory=list)
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)

    def after_check(self, failures: Sequence[Failure]) -> Survey:
        """The survey with other ``failures``: all cases that cannot be used.

        Raises:
            CohortError: no scan can be used.
        """
        failed = {failure.case_id for failure in failures}
        usable = [row for row, id in enumerate(self.ids) if id not in failed]
        if not usable:
            raise none_usable(failures)
        ids = [self.ids[row] for row in usable]
        return replace(
            self, ids=ids, sizes=self.sizes[usable], spacings_mm=self.spacings_mm[usable], failures=list(failures)
        )

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return int(self.sizes.shape[1])

    @property
    def has_mm(self) -> bool:
        """Whether the spacings are known: PNG and JPEG have none, and are read as 1."""
        return self.spatial_dims == 3 or bool((self.spacings_mm != 1).any())

    @property
    def fields_mm(self) -> NDArray[np.float64]:
        """(N, D) the scans' fields of view in mm."""
        extents: NDArray[np.float64] = self.sizes * self.spacings_mm
        return extents

    @property
    def outliers(self) -> list[str]:
        """Ids of scans with a spacing or field of view below half the median, or above twice the median, of an axis."""
        is_outlier = np.zeros(len(self.ids), bool)
        for values in (self.spacings_mm, self.fields_mm):
            ratio = values / np.median(values, axis=0)
            is_outlier |= ((ratio > _OUTLIER_RATIO) | (ratio < 1 / _OUTLIER_RATIO)).any(axis=1)
        return [id for id, outlying in zip(self.ids, is_outlier, strict=True) if outlying]

    def summary(self) -> dict[str, Any]:
        """Counts, and the 5th, 50th and 95th percentile per axis, as plain values for JSON."""
        measures = {"size": self.sizes, "spacing_mm": self.spacings_mm, "field_mm": self.fields_mm}
        percentiles = {
            name: {f"p{p}": np.percentile(values, p, axis=0).round(3).tolist() for p in (5, 50, 95)}
            for name, values in measures.items()
        }
        failures = [{"case_id": f.case_id, "file": f.file, "reason": f.reason} for f in self.failures]
        counts = {"num_scans": len(self.ids), "num_failed": len(failures), "spatial_dims": self.spatial_dims}
        return {**counts, **percentiles, "outliers": self.outliers, "failures": failures}


def survey_cohort(
    cases: Iterable[Case], spatial_dims: int | None = None, slice_axis: Axis = "axial", fingerprints: bool = False
) -> Survey:
    """Survey a cohort: read the header of each case's first image.

    Args:
        cases: the cohort.
        spatial_dims: 3 for volumes, 2 for images and slices of volumes; None: what most scans are.
        slice_axis: the direction in which the slices of volumes are stacked.
        fingerprints: also read every scan, and compute its fingerprint; scans that cannot be read have none.

    Raises:
        CohortError: no scan of this kind can be read.

    Example:
        >>> from pathlib import Path
        >>> survey_cohort([Case("a", {"image": Path("gone.nii")}, "a")])
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: none of 1 scans can be used, the first is 'a': gone.nii: there is no ...
    """
    scans: list[tuple[Case, tuple[int, ...], tuple[float, ...]]] = []
    failures: list[Failure] = []
    fingerprint_of: dict[str, Fingerprint] = {}
    for case in cases:
        if fingerprints:
            with suppress(ScanError):
                fingerprint_of[case.id] = scan_fingerprint(read_scan(case.first_file))
        try:
            scans.append((case, *read_geometry(case.first_file)))
        except ScanError as error:
            failures.append(Failure(case.id, case.file, str(error)))
    if spatial_dims is None:
        num_volumes = sum(len(size) == 3 for _, size, _ in scans)
        spatial_dims = 3 if 2 * num_volumes > len(scans) else 2
    for case, size, _ in scans:
        if len(size) < spatial_dims:
            failures.append(
                Failure(case.id, case.file, f"{case.file}: a 2D image among volumes; use a cohort of its own for it")
            )
    usable = [(case.id, *_model_view(size, spacing, slice_axis, spatial_dims)) for case, size, spacing in scans
              if len(size) >= spatial_dims]  # fmt: skip
    if not usable:
        raise none_usable(failures)
    ids, sizes, spacings = zip(*usable, strict=True)
    return Survey(list(ids), np.array(sizes), np.array(spacings), failures, fingerprint_of)


def other_channels(cases: Iterable[Case], channels: int, colour: Colour) -> list[Failure]:
    """The cases that a model with these channels refuses, or whose pixels cannot be read where the header cannot tell.

    Args:
        cases: the cohort.
        channels: the channels of the model's images.
        colour: what it does with colour images, as for :func:`~monai_diffae.data.scans.read_scan`.
    """
    failures = []
    for case in cases:
        try:
            for images in case.images.values():
                for file in images if isinstance(images, tuple) else (images,):
                    check_channels(file, 1 if isinstance(images, tuple) else channels, colour)
        except ScanError as error:
            failures.append(Failure(case.id, case.file, str(error)))
    return failures


def none_usable(failures: Sequence[Failure]) -> CohortError:
    """Make the error that no scan can be used, with the first reason."""
    first = failures[0]
    return CohortError(f"none of {len(failures)} scans can be used, the first is '{first.case_id}': {first.reason}")


def _model_view(
    size: tuple[int, ...], spacing_mm: tuple[float, ...], axis: Axis, spatial_dims: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Size and spacing of what the model sees: a slice of a volume for a 2D model, else the whole scan."""
    if len(size) == spatial_dims:
        return size, spacing_mm
    rows, columns = slice_shape(range(3), axis)
    return (size[rows], size[columns]), (spacing_mm[rows], spacing_mm[columns])
