"""What the scans of a cohort look like: volumes or images, their sizes and spacings, colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure
from monai_diffae.data.scans import read_scan
from monai_diffae.data.slices import ras_axes
from monai_diffae.errors import ScanError


@dataclass(frozen=True)
class Appearance:
    """What some scans of a cohort look like.

    Attributes:
        num_images: scans that are 2D images.
        num_volumes: scans that are volumes.
        num_colour: images (or volumes) with three different channels.
        sizes: the sizes of the readable scans: rows and columns, or voxels along R, A and S.
        spacings_mm: their spacings along the same axes.
        failures: scans that cannot be read.
    """

    num_images: int = 0
    num_volumes: int = 0
    num_colour: int = 0
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    spacings_mm: list[tuple[float, ...]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """One line about the kinds and sizes, and one each about colour, mixed kinds and unreadable scans."""
        total = self.num_images + self.num_volumes
        for dims, kind in ((2, "2D images"), (3, "volumes")):
            rows = [row for row, size in enumerate(self.sizes) if len(size) == dims]
            if rows:
                sizes = _range([self.sizes[row] for row in rows])
                spacing = f", voxels of {_range([self.spacings_mm[row] for row in rows])} mm" if dims == 3 else ""
                yield f"{len(rows)} of {total} scans looked at are {kind}: {sizes}{spacing}"
        if self.num_colour:
            yield f"{self.num_colour} are in colour: train with --colour grey or --colour rgb, or they are left out"
        if self.num_images and self.num_volumes:
            yield "2D images and volumes are mixed: a 3D model leaves the images out, a 2D model slices the volumes"
        if self.failures:
            yield f"{len(self.failures)} cannot be read, the first: {self.failures[0].reason}"

    def figures(self) -> dict[str, Any]:
        """Counts as plain values."""
        return {
            "num_images": self.num_images,
            "num_volumes": self.num_volumes,
            "num_colour": self.num_colour,
            "num_unreadable": len(self.failures),
        }


def look_at(cases: Sequence[Case], limit: int = 32) -> Appearance:
    """Read up to ``limit`` scans, evenly spread over the cases, and describe them.

    Example:
        >>> from pathlib import Path
        >>> look_at([Case("a", {"image": Path("gone.nii")}, "a")]).failures[0].reason
        'gone.nii: there is no such file; check the path'
    """
    sizes, spacings, failures, num_colour = [], [], [], 0
    for row in np.unique(np.linspace(0, len(cases) - 1, min(limit, len(cases))).astype(int)):
        case = cases[row]
        try:
            scan = read_scan(case.first_file)
        except ScanError as error:
            failures.append(Failure(case.id, case.file, str(error)))
            continue
        order = range(2) if scan.spatial_dims == 2 else np.argsort(ras_axes(scan.affine))
        sizes.append(tuple(scan.array.shape[1 + axis] for axis in order))
        spacings.append(tuple(scan.spacing_mm[axis] for axis in order))
        num_colour += len(scan.array) == 3
    num_volumes = sum(len(size) == 3 for size in sizes)
    return Appearance(len(sizes) - num_volumes, num_volumes, num_colour, sizes, spacings, failures)


def _range(values: Sequence[Sequence[float]]) -> str:
    """``40 x 50`` if all are equal, else ``40-60 x 50``."""
    ends = zip(np.min(values, axis=0), np.max(values, axis=0), strict=True)
    return " x ".join(f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g}-{high:.3g}" for low, high in ends)
