"""What is found in the files of one case: its geometry and intensities, or why it cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_diffae.data.cases import Case
from monai_diffae.data.contents import item_hash
from monai_diffae.data.fingerprints import Fingerprint, scan_fingerprint
from monai_diffae.data.formats.scan import Doubt, Header, Scan
from monai_diffae.data.scans import displayed_geometry, read_header, read_with_doubts
from monai_diffae.errors import ScanError

PERCENTILES = (0, 1, 50, 99, 100)


@dataclass(frozen=True, eq=False)
class Reading:
    """What was found in a case.

    Attributes:
        error: why it cannot be used, in one line; empty: it can.
        doubts: why it may not be what was measured.
        size: voxels of its first image along R, A and S, or rows and columns.
        spacing_mm: voxel spacing along the same axes.
        channels: channels of its first file; 0: only the header was read.
        intensities: the percentiles 0, 1, 50, 99 and 100 of its first file.
        content: the SHA-256 of its files; empty: only the headers were read.
        fingerprint: of its first file, to find twins.
    """

    error: str = ""
    doubts: tuple[Doubt, ...] = ()
    size: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    channels: int = 0
    intensities: tuple[float, ...] = ()
    content: str = ""
    fingerprint: Fingerprint | None = None


def read_case(case: Case, headers: bool = False) -> Reading:
    """Read all files of a case.

    Args:
        case: the case.
        headers: read headers only: damaged voxels and twins are not found.

    Example:
        >>> read_case(Case("a", {"image": Path("gone.nii")}, "a")).error
        'gone.nii: there is no such file; check the path'
    """
    content = "" if headers else item_hash(case.item())
    try:
        if headers:
            found = [read_header(file) for file in _files(case)]
            size, spacing_mm = displayed_geometry(found[0])
            return Reading(doubts=_doubts(found), size=size, spacing_mm=spacing_mm)
        scans = [read_with_doubts(file) for file in _files(case)]
    except ScanError as error:
        return Reading(error=str(error), content=content)
    first = scans[0]
    size, spacing_mm = displayed_geometry(Header(first.array.shape[1:], first.affine))
    intensities = np.percentile(first.array, PERCENTILES)
    return Reading(
        doubts=_doubts(scans), size=size, spacing_mm=spacing_mm, channels=len(first.array),
        intensities=tuple(float(v) for v in intensities), content=content, fingerprint=scan_fingerprint(first),
    )  # fmt: skip


def _files(case: Case) -> Iterator[Path]:
    """All files of a case, the first one of its image first."""
    for key in sorted(case.images, key=lambda key: key != "image"):
        images = case.images[key]
        yield from images if isinstance(images, tuple) else (images,)


def _doubts(found: list[Scan] | list[Header]) -> tuple[Doubt, ...]:
    return tuple(dict.fromkeys(doubt for each in found for doubt in each.doubts))
