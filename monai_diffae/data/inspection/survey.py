"""What the scans of a cohort are like: volumes or images, their sizes and spacings, colour."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.cases import Case
from monai_diffae.data.formats import Header
from monai_diffae.data.inspection.twins import ScanPrint, scan_print
from monai_diffae.data.progress import Failure, count_by_label, track
from monai_diffae.data.scans import check_channels, displayed_geometry, read_geometry, read_scan
from monai_diffae.errors import CohortError, ScanError
from monai_diffae.policies import Colour

_OUTLIER_RATIO = 2.0  # ratio of a value to the median, or of the median to a value, beyond which a scan is an outlier


@dataclass(frozen=True, eq=False)
class Survey:
    """Sizes and spacings of a cohort's scans of one kind: volumes or 2D images."""

    ids: list[str]  # (N,) ids of the scans
    sizes: NDArray[np.int64]  # (N, D) voxels along R, A and S of volumes, or rows and columns of images
    spacings_mm: NDArray[np.float64]  # (N, D) voxel spacings in mm
    # cases whose header cannot be read, or that are of the other kind
    failures: list[Failure] = field(default_factory=list)

    def after_check(self, failures: Sequence[Failure]) -> "Survey":
        """The survey with other ``failures``: all cases that cannot be used."""
        failed = {failure.case_id for failure in failures}
        usable = [row for row, id in enumerate(self.ids) if id not in failed]
        if not usable:
            raise none_usable(failures)
        ids = [self.ids[row] for row in usable]
        return Survey(ids, self.sizes[usable], self.spacings_mm[usable], list(failures))

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
        failures = [asdict(failure) for failure in self.failures]
        counts = {"num_scans": len(self.ids), "num_failed": len(failures), "spatial_dims": self.spatial_dims}
        return {**counts, **percentiles, "outliers": self.outliers, "failures": failures}


def survey_cohort(cases: Iterable[Case], spatial_dims: int | None = None) -> Survey:
    """Survey a cohort: read the header of each case's first image."""
    scans: list[tuple[Case, tuple[int, ...], tuple[float, ...]]] = []
    failures: list[Failure] = []
    for case in cases:
        try:
            scans.append((case, *read_geometry(case.first_file)))
        except ScanError as error:
            failures.append(Failure(case.id, case.file, str(error)))
    if spatial_dims is None:
        num_volumes = sum(len(size) == 3 for _, size, _ in scans)
        spatial_dims = 3 if 2 * num_volumes > len(scans) else 2
    usable = []
    for case, size, spacing_mm in scans:
        if len(size) < spatial_dims:
            reason = f"{case.file}: a 2D image among volumes; use a cohort of its own for it"
            failures.append(Failure(case.id, case.file, reason))
        elif len(size) > spatial_dims:  # a 2D model sees its axial slices
            usable.append((case.id, size[1::-1], spacing_mm[1::-1]))
        else:
            usable.append((case.id, size, spacing_mm))
    if not usable:
        raise none_usable(failures)
    ids, sizes, spacings = zip(*usable, strict=True)
    return Survey(list(ids), np.array(sizes), np.array(spacings), failures)


def other_channels(cases: Iterable[Case], channels: int, colour: Colour) -> list[Failure]:
    """The cases that a model with these channels refuses, or whose pixels cannot be read."""
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


@dataclass(frozen=True)
class Appearance:
    """What some scans of a cohort look like."""

    cases: Sequence[Case]  # those that were looked at
    # size and spacing in mm of the readable scans along rows and columns, or R, A and S
    geometries: list[tuple[tuple[int, ...], tuple[float, ...]]]
    colour: list[str]  # ids of the scans with three different channels
    failures: list[Failure]  # scans that cannot be read
    prints: dict[int, ScanPrint]  # by the positions of the cases, to find twins; empty if only some were looked at

    @property
    def num_images(self) -> int:
        """The number of readable scans that are 2D images."""
        return len(self._of_dims(2))

    @property
    def num_volumes(self) -> int:
        """The number of readable scans that are volumes."""
        return len(self._of_dims(3))

    def lines(self) -> Iterator[str]:
        """One line about the kinds and sizes, and one each about colour, mixed kinds and unreadable scans."""
        images, volumes = self._of_dims(2), self._of_dims(3)
        scans = f"of {len(self.geometries)} scans looked at are"
        if images:
            yield f"{len(images)} {scans} 2D images: {_range(images, 0)}"
        if volumes:
            yield f"{len(volumes)} {scans} volumes: {_range(volumes, 0)}, voxels of {_range(volumes, 1)} mm"
        if self.colour:
            count = f"{len(self.colour)} are in colour{count_by_label(self.colour, self.cases)}"
            yield f"{count}: train with --colour grey or --colour rgb, or they are left out"
        if images and volumes:
            yield "2D images and volumes are mixed: a 3D model leaves the images out, a 2D model slices the volumes"
        if self.failures:
            by_label = count_by_label([failure.case_id for failure in self.failures], self.cases)
            yield f"{len(self.failures)} cannot be read{by_label}, the first: {self.failures[0].reason}"

    def _of_dims(self, dims: int) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        return [geometry for geometry in self.geometries if len(geometry[0]) == dims]

    def figures(self) -> dict[str, Any]:
        """Counts as plain values."""
        return {
            "num_images": self.num_images, "num_volumes": self.num_volumes,
            "num_colour": len(self.colour), "num_unreadable": len(self.failures),
        }  # fmt: skip


def look_at(cases: Sequence[Case], limit: int | None = None) -> Appearance:
    """Read the first file of each case, and describe the scans."""
    geometries, failures, colour, prints = [], [], [], {}
    count = min(limit or len(cases), len(cases))
    positions = np.unique(np.linspace(0, len(cases) - 1, count).astype(int)).tolist()
    for position in positions if limit else track(positions, f"reading {len(cases)} scans to find twins"):
        case = cases[position]
        try:
            scan = read_scan(case.first_file)
        except ScanError as error:
            failures.append(Failure(case.id, case.file, str(error)))
            continue
        geometries.append(displayed_geometry(Header(scan.array.shape[1:], scan.affine)))
        if len(scan.array) == 3:
            colour.append(case.id)
        if limit is None:
            prints[position] = scan_print(scan)
    return Appearance([cases[position] for position in positions], geometries, colour, failures, prints)


def _range(geometries: Sequence[tuple[Sequence[float], Sequence[float]]], which: Literal[0, 1]) -> str:
    """Sizes (0) or spacings (1): ``40 x 50`` if all are equal, else ``40-60 x 50``."""
    values = [geometry[which] for geometry in geometries]
    ends = zip(np.min(values, axis=0), np.max(values, axis=0), strict=True)
    return " x ".join(f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g}-{high:.3g}" for low, high in ends)
