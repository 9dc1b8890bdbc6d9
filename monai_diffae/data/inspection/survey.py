"""What the scans of a cohort are like: volumes or images, their sizes and spacings, colour."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.cases import Case, spread_cases
from monai_diffae.data.fingerprints import item_hash
from monai_diffae.data.formats.scan import Doubt, Header
from monai_diffae.data.inspection.twins import ScanPrint, scan_print
from monai_diffae.data.progress import Failure, count_by_label, track
from monai_diffae.data.scans import apply_policy, check_channels, displayed_geometry, read_header, read_with_doubts
from monai_diffae.errors import CohortError, ScanError
from monai_diffae.policies import Colour

_PERCENTILES = (0, 1, 50, 99, 100)
_OUTLIER_RATIO = 2.0  # ratio of a value to the median, or of the median to a value, beyond which a scan is an outlier


@dataclass(frozen=True, eq=False)
class Reading:
    """What was found in the files of a case."""

    error: str = ""  # why it cannot be used, in one line; empty: it can
    doubts: tuple[Doubt, ...] = ()  # why it may not be what was measured
    size: tuple[int, ...] = ()  # voxels of its first image along R, A and S, or rows and columns
    spacing_mm: tuple[float, ...] = ()  # voxel spacing along the same axes
    channels: int = 0  # channels of its first file; 0: only the header was read
    intensities: tuple[float, ...] = ()  # the percentiles 0, 1, 50, 99 and 100 of its first file
    content: str = ""  # the SHA-256 of its files; empty: only the headers were read
    print: ScanPrint | None = None  # of its first file, to find twins


def read_case(case: Case, headers: bool = False, *, is_complete: bool = True) -> Reading:
    """Read all files of a case, or their headers; without ``is_complete``, nothing is computed but what twins need."""
    content = item_hash(case.item()) if is_complete and not headers else ""
    try:
        scans = [read_header(file) if headers else read_with_doubts(file) for file in case.files]
    except ScanError as error:
        return Reading(error=str(error), content=content)
    doubts, first = tuple(dict.fromkeys(doubt for scan in scans for doubt in scan.doubts)), scans[0]
    if isinstance(first, Header):
        return Reading("", doubts, *displayed_geometry(first.shape, first.affine))
    size, spacing_mm = displayed_geometry(first.array.shape[1:], first.affine)
    intensities = np.percentile(first.array, _PERCENTILES).tolist() if is_complete else ()
    return Reading(
        "", doubts, size, spacing_mm, len(first.array), tuple(intensities), content, scan_print(first),
    )  # fmt: skip


def _read_with_warnings(case: Case, headers: bool = False) -> Reading:
    reading = read_case(case, headers, is_complete=False)
    apply_policy(case.first_file, reading.doubts)
    return reading


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


def survey_cohort(cases: Sequence[Case], spatial_dims: int | None = None) -> Survey:
    """Survey a cohort for a 2D or 3D model by its headers."""
    return make_survey(cases, [_read_with_warnings(case, headers=True) for case in cases], spatial_dims)


def make_survey(cases: Sequence[Case], readings: Sequence[Reading], spatial_dims: int | None = None) -> Survey:
    """Survey what was read; by default for the dimensions that most scans have."""
    readable = [(case, reading) for case, reading in zip(cases, readings, strict=True) if not reading.error]
    if spatial_dims is None:
        num_volumes = sum(len(reading.size) == 3 for _, reading in readable)
        spatial_dims = 3 if 2 * num_volumes > len(readable) else 2
    failures = list_failures(cases, readings)
    failures += [
        Failure(case.id, case.file, f"{case.file}: a 2D image among volumes; use a cohort of its own for it")
        for case, reading in readable if len(reading.size) < spatial_dims
    ]  # fmt: skip
    usable = [(case.id, reading) for case, reading in readable if len(reading.size) >= spatial_dims]
    if not usable:
        raise none_usable(failures)
    # a 2D model sees the axial slices of a volume
    geometry = [
        (r.size, r.spacing_mm) if len(r.size) == spatial_dims else (r.size[1::-1], r.spacing_mm[1::-1])
        for _, r in usable
    ]
    sizes, spacings = zip(*geometry, strict=True)
    return Survey([id for id, _ in usable], np.array(sizes), np.array(spacings), failures)


def list_failures(cases: Sequence[Case], readings: Sequence[Reading]) -> list[Failure]:
    """The cases that cannot be read."""
    pairs = zip(cases, readings, strict=True)
    return [Failure(case.id, case.file, reading.error) for case, reading in pairs if reading.error]


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
    readings: Sequence[Reading]  # one for each of them

    @property
    def colour(self) -> list[str]:
        """Ids of the scans with three different channels."""
        return [case.id for case, each in zip(self.cases, self.readings, strict=True) if each.channels == 3]

    @property
    def prints(self) -> dict[int, ScanPrint]:
        """The prints of the readable scans by their positions, to find twins."""
        return {k: reading.print for k, reading in enumerate(self.readings) if reading.print is not None}

    def of_dims(self, dims: int) -> list[Reading]:
        """The readable scans that are 2D images, or volumes."""
        return [reading for reading in self.readings if len(reading.size) == dims]

    def lines(self) -> Iterator[str]:
        """One line about the kinds and sizes, and one each about colour, mixed kinds and unreadable scans."""
        images, volumes, failures = self.of_dims(2), self.of_dims(3), list_failures(self.cases, self.readings)
        scans = f"of {len(images) + len(volumes)} scans looked at are"
        if images:
            yield f"{len(images)} {scans} 2D images: {_range([each.size for each in images])}"
        if volumes:
            size, spacing = _range([each.size for each in volumes]), _range([each.spacing_mm for each in volumes])
            yield f"{len(volumes)} {scans} volumes: {size}, voxels of {spacing} mm"
        if self.colour:
            count = f"{len(self.colour)} are in colour{count_by_label(self.colour, self.cases)}"
            yield f"{count}: train with --colour grey or --colour rgb, or they are left out"
        if images and volumes:
            yield "2D images and volumes are mixed: a 3D model leaves the images out, a 2D model slices the volumes"
        if failures:
            by_label = count_by_label([failure.case_id for failure in failures], self.cases)
            yield f"{len(failures)} cannot be read{by_label}, the first: {failures[0].reason}"

    def figures(self) -> dict[str, Any]:
        """Counts as plain values."""
        return {
            "num_images": len(self.of_dims(2)), "num_volumes": len(self.of_dims(3)),
            "num_colour": len(self.colour), "num_unreadable": len(list_failures(self.cases, self.readings)),
        }  # fmt: skip


def look_at(cases: Sequence[Case], limit: int | None = None) -> Appearance:
    """Read the files of all cases, or of at most ``limit`` of them, and describe the scans."""
    if limit is None:
        return Appearance(cases, [*map(_read_with_warnings, track(cases, f"reading {len(cases)} scans to find twins"))])
    cases = spread_cases(cases, limit)
    return Appearance(cases, [_read_with_warnings(case) for case in cases])


def _range(values: Sequence[Sequence[float]]) -> str:
    """Sizes or spacings: ``40 x 50`` if all are equal, else ``40-60 x 50``."""
    ends = zip(np.min(values, axis=0), np.max(values, axis=0), strict=True)
    return " x ".join(f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g}-{high:.3g}" for low, high in ends)
