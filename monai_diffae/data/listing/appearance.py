"""What the scans of a cohort look like: volumes or images, their sizes and spacings, colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure, count_by_label
from monai_diffae.data.fingerprints import Fingerprint, scan_fingerprint
from monai_diffae.data.progress import track
from monai_diffae.data.scans import read_scan
from monai_diffae.data.slices import ras_axes
from monai_diffae.errors import ScanError


@dataclass(frozen=True)
class Appearance:
    """What some scans of a cohort look like.

    Attributes:
        num_images: scans that are 2D images.
        num_volumes: scans that are volumes.
        colour: ids of the images (or volumes) with three different channels.
        sizes: the sizes of the readable scans: rows and columns, or voxels along R, A and S.
        spacings_mm: their spacings along the same axes.
        failures: scans that cannot be read.
        by_label: how many scans of each class are in colour, and how many cannot be read, in brackets; each is empty
            if there are none.
        fingerprints: by the positions of the cases, to find twins; empty if only some scans were looked at.
    """

    num_images: int = 0
    num_volumes: int = 0
    colour: list[str] = field(default_factory=list)
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    spacings_mm: list[tuple[float, ...]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    by_label: tuple[str, str] = ("", "")
    fingerprints: dict[int, Fingerprint] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """One line about the kinds and sizes, and one each about colour, mixed kinds and unreadable scans."""
        total = self.num_images + self.num_volumes
        for dims, kind in ((2, "2D images"), (3, "volumes")):
            rows = [row for row, size in enumerate(self.sizes) if len(size) == dims]
            if rows:
                sizes = _range([self.sizes[row] for row in rows])
                spacing = f", voxels of {_range([self.spacings_mm[row] for row in rows])} mm" if dims == 3 else ""
                yield f"{len(rows)} of {total} scans looked at are {kind}: {sizes}{spacing}"
        if self.colour:
            count = f"{len(self.colour)} are in colour{self.by_label[0]}"
            yield f"{count}: train with --colour grey or --colour rgb, or they are left out"
        if self.num_images and self.num_volumes:
            yield "2D images and volumes are mixed: a 3D model leaves the images out, a 2D model slices the volumes"
        if self.failures:
            yield f"{len(self.failures)} cannot be read{self.by_label[1]}, the first: {self.failures[0].reason}"

    def figures(self) -> dict[str, Any]:
        """Counts as plain values."""
        return {
            "num_images": self.num_images,
            "num_volumes": self.num_volumes,
            "num_colour": len(self.colour),
            "num_unreadable": len(self.failures),
        }


def look_at(cases: Sequence[Case], limit: int | None = None) -> Appearance:
    """Read the first file of each case, and describe the scans.

    Args:
        cases: the cohort.
        limit: read so many, evenly spread over the cases, and compute no fingerprints; None: all.

    Example:
        >>> from pathlib import Path
        >>> look_at([Case("a", {"image": Path("gone.nii")}, "a")]).failures[0].reason
        'gone.nii: there is no such file; check the path'
    """
    sizes, spacings, failures, colour, fingerprints = [], [], [], [], {}
    count = min(limit or len(cases), len(cases))
    positions = np.unique(np.linspace(0, len(cases) - 1, count).astype(int)).tolist()
    for position in positions if limit else track(positions, f"reading {len(cases)} scans to find twins"):
        case = cases[position]
        try:
            scan = read_scan(case.first_file)
        except ScanError as error:
            failures.append(Failure(case.id, case.file, str(error)))
            continue
        order = range(2) if scan.spatial_dims == 2 else np.argsort(ras_axes(scan.affine))
        sizes.append(tuple(scan.array.shape[1 + axis] for axis in order))
        spacings.append(tuple(scan.spacing_mm[axis] for axis in order))
        if len(scan.array) == 3:
            colour.append(case.id)
        if limit is None:
            fingerprints[position] = scan_fingerprint(scan)
    num_volumes = sum(len(size) == 3 for size in sizes)
    seen = [cases[position] for position in positions]
    by_label = (count_by_label(colour, seen), count_by_label([failure.case_id for failure in failures], seen))
    return Appearance(
        num_images=len(sizes) - num_volumes, num_volumes=num_volumes, colour=colour, sizes=sizes, spacings_mm=spacings,
        failures=failures, by_label=by_label, fingerprints=fingerprints,
    )  # fmt: skip


def _range(values: Sequence[Sequence[float]]) -> str:
    """``40 x 50`` if all are equal, else ``40-60 x 50``."""
    ends = zip(np.min(values, axis=0), np.max(values, axis=0), strict=True)
    return " x ".join(f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g}-{high:.3g}" for low, high in ends)
