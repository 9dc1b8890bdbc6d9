"""What every format's reader gives: a scan, or one line that says why not."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ScanError

logger = logging.getLogger(__name__)

MAX_BYTES = 2 * 1024**3
"""The largest scan that is read, as float32 voxels: 2 GiB."""

MAX_LINE = 200
"""The longest error line, in characters."""

_FEW_STEPS, _TOO_FEW_STEPS = 256, 8  # of float32 between the lowest and the highest value


@dataclass(eq=False)
class Scan:
    """One scan.

    Attributes:
        array: float32 ``[C, *S]``. Volumes are in the file's own voxel order ``[C, X, Y, Z]``; pictures and single
            slices are ``[C, H, W]``, rows top to bottom as displayed.
        affine: 4x4 float64, from the indices of ``S`` (a picture's third index is 0) to millimetres, RAS+. The
            identity for PNG and JPEG, which know no millimetres.
        modality: DICOM's modality such as ``"CT"``, ``"MR"``, ``"DX"``; None elsewhere.
        header: of a volume from a NIfTI file, what :func:`~monai_diffae.data.scans.write_scan` needs to write another
            with the same type, units and codes; None elsewhere.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    modality: str | None = None
    header: nib.Nifti1Header | None = None

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.array.ndim - 1

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between neighbouring voxels along each of ``S``, in millimetres."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, : self.spatial_dims], axis=0))


@dataclass(frozen=True)
class Header:
    """What a file says about its voxels before they are read: sizes ``S`` (2 or 3) and the affine, as in `Scan`."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]


def problem(path: str | os.PathLike[str], wrong: str, todo: str) -> ScanError:
    """The error ``file name: what is wrong; what to do``, one line of at most 200 characters, without folders.

    Example:
        >>> problem("/data/Doe^Jane/ct.nii", "the file is empty", "copy it again")
        ScanError('ct.nii: the file is empty; copy it again')
    """
    name = " ".join(Path(path).name.split())
    if len(name) > 48:
        name = "..." + name[-45:]
    room = MAX_LINE - len(name) - len(todo) - 4
    wrong = " ".join(wrong.split())
    if len(wrong) > room:
        wrong = wrong[: max(room - 3, 0)] + "..."
    return ScanError(f"{name}: {wrong}; {todo}")


@functools.lru_cache(maxsize=100_000)
def warn_once(path: Path, text: str) -> None:
    """Log ``file name: text``, once in a process however often the file is read."""
    logger.warning("%s: %s", path.name, text)


def as_float32(path: Path, values: NDArray[np.generic]) -> NDArray[np.float32]:
    """The values in the precision that scans are kept in; what overflows becomes infinite.

    A small signal on a large offset, as a float64 file can hold, loses its steps: few that are left are warned of.

    Raises:
        ScanError: next to nothing of the signal is left.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported as non-finite
        rounded = values.astype(np.float32)
    if values.dtype.itemsize <= 2 or values.dtype == np.float32:  # nothing is rounded
        return rounded
    finite = np.isfinite(rounded)
    low, high = (
        float(end(rounded, where=finite, initial=start)) for end, start in ((np.min, np.inf), (np.max, -np.inf))
    )
    num_steps = (high - low) / float(np.spacing(np.float32(max(abs(low), abs(high)))))
    is_exact = num_steps >= _FEW_STEPS or bool(np.all((rounded == values) | ~finite))
    if is_exact or bool(np.all(values == values.flat[0])):  # the same everywhere: said of all types alike
        return rounded
    if num_steps < _TOO_FEW_STEPS:
        raise problem(
            path,
            f"its values, about {high:.2g}, are too close together for float32, which scans are kept in",
            "subtract the offset and export it again",
        )
    kept = f"float32, which scans are kept in, tells {num_steps:.0f} steps apart; subtract the offset"
    warn_once(path, f"its values, about {high:.2g}, are close together: {kept}")
    return rounded


def check_budget(path: str | os.PathLike[str], sizes: Sequence[int], components: int = 1) -> None:
    """Refuse sizes that are not positive, or that need more than :data:`MAX_BYTES`, before anything is allocated."""
    if any(n < 1 for n in sizes):
        raise problem(path, f"its header declares the size {_times(sizes)}", "export it again")
    gib = math.prod(sizes) * components * 4 / 1024**3
    if gib * 1024**3 > MAX_BYTES:
        raise problem(
            path, f"its header declares {_times(sizes)} voxels, {gib:.1f} GiB, over 2 GiB", "crop or resample it"
        )


def check_affine(path: str | os.PathLike[str], affine: NDArray[np.float64]) -> None:
    """Refuse spacings that are not positive numbers, and axes that do not span space."""
    if not np.isfinite(affine).all():
        raise problem(path, "its affine or spacing is not finite", "export it again with a valid spacing")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing < 1e-9).any():
        shown = " x ".join(f"{v:g}" for v in spacing)
        raise problem(path, f"its voxel spacing is {shown} mm", "export it again with a valid spacing")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-4:
        raise problem(path, "its affine is singular (two axes point the same way)", "repair its sform or direction")


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(str(n) for n in sizes)
