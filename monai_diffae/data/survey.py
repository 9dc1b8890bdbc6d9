"""What sizes and spacings a cohort's scans have, from their headers; whether they can be read whole, on demand."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure
from monai_diffae.data.scans import Axis, read_geometry, read_scan
from monai_diffae.data.slices import slice_shape
from monai_diffae.errors import CohortError, ScanError

_FAR = 2.0  # times the median, or the median over it


@dataclass(frozen=True, eq=False)
class Survey:
    """Sizes and spacings of the scans of a cohort that are of one kind, volumes or 2D images.

    Attributes:
        ids: of the scans.
        sizes: (N, D) voxels: along R, A and S of volumes, rows and columns of images.
        spacings_mm: (N, D) millimetres between voxels.
        failures: cases whose header (or whole scan) cannot be read, or that are of the other kind.
    """

    ids: list[str]
    sizes: NDArray[np.int64]
    spacings_mm: NDArray[np.float64]
    failures: list[Failure] = field(default_factory=list)

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return int(self.sizes.shape[1])

    @property
    def fields_mm(self) -> NDArray[np.float64]:
        """(N, D) millimetres from one end of a scan to the other."""
        extents: NDArray[np.float64] = self.sizes * self.spacings_mm
        return extents

    @property
    def outliers(self) -> list[str]:
        """Ids of scans whose spacing or field is less than half, or more than twice, the median of an axis."""
        far = np.zeros(len(self.ids), bool)
        for values in (self.spacings_mm, self.fields_mm):
            ratio = values / np.median(values, axis=0)
            far |= ((ratio > _FAR) | (ratio < 1 / _FAR)).any(axis=1)
        return [id for id, is_far in zip(self.ids, far, strict=True) if is_far]

    def summary(self) -> dict[str, Any]:
        """Counts, and 5th, 50th and 95th percentile of each axis, as JSON can hold them."""
        measures = {"size": self.sizes, "spacing_mm": self.spacings_mm, "field_mm": self.fields_mm}
        percentiles = {
            name: {f"p{p}": np.percentile(values, p, axis=0).round(3).tolist() for p in (5, 50, 95)}
            for name, values in measures.items()
        }
        failures = [{"case_id": f.case_id, "file": f.file, "reason": f.reason} for f in self.failures]
        counts = {"num_scans": len(self.ids), "num_failed": len(failures), "spatial_dims": self.spatial_dims}
        return {**counts, **percentiles, "outliers": self.outliers, "failures": failures}


def survey_cohort(
    cases: Iterable[Case], spatial_dims: int | None = None, slice_axis: Axis = "axial", read_whole: bool = False
) -> Survey:
    """Read the header of each case's first image.

    Args:
        cases: the cohort.
        spatial_dims: 3 for volumes, 2 for images and the slices of volumes; when None what most of them are.
        slice_axis: the direction that the slices of volumes are stacked in.
        read_whole: read every image of each case to its end, too, with all checks of
            :func:`~monai_diffae.data.scans.read_scan`.

    Raises:
        CohortError: no scan of that kind can be read.

    Example:
        >>> survey_cohort([Case("a", {"image": Path("gone.nii")}, "a")])
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: none of 1 scans can be planned for, the first is 'a': gone.nii: there is no ...
    """
    found: list[tuple[Case, tuple[int, ...], tuple[float, ...]]] = []
    failures: list[Failure] = []
    for case in cases:
        try:
            found.append((case, *_read(case, read_whole)))
        except ScanError as error:
            failures.append(Failure(case.id, case.file, str(error)))
    if spatial_dims is None:
        num_volumes = sum(len(size) == 3 for _, size, _ in found)
        spatial_dims = 3 if 2 * num_volumes > len(found) else 2
    for case, size, _ in found:
        if len(size) < spatial_dims:
            failures.append(Failure(case.id, case.file, f"{case.file}: a 2D image among volumes; plan for it apart"))
    used = [(case.id, *_of_slices(size, spacing, slice_axis, spatial_dims)) for case, size, spacing in found
            if len(size) >= spatial_dims]  # fmt: skip
    if not used:
        first = failures[0]
        raise CohortError(
            f"none of {len(failures)} scans can be planned for, the first is '{first.case_id}': {first.reason}"
        )
    ids, sizes, spacings = zip(*used, strict=True)
    return Survey(list(ids), np.array(sizes), np.array(spacings), failures)


def _read(case: Case, whole: bool) -> tuple[tuple[int, ...], tuple[float, ...]]:
    files = [[image] if isinstance(image, Path) else image for image in case.images.values()]
    for path in itertools.chain.from_iterable(files if whole else []):
        read_scan(path)
    image = case.images["image"]
    return read_geometry(image if isinstance(image, Path) else image[0])


def _of_slices(
    size: tuple[int, ...], spacing_mm: tuple[float, ...], axis: Axis, spatial_dims: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """What a 2D model sees of a volume; anything else is itself."""
    if len(size) == spatial_dims:
        return size, spacing_mm
    rows, columns = slice_shape(range(3), axis)
    return (size[rows], size[columns]), (spacing_mm[rows], spacing_mm[columns])
