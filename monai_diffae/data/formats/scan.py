"""The result of all readers: a scan, or an error of one line."""

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import problem
from monai_diffae.policies import PathLike

logger = logging.getLogger(__name__)

Voxels = NDArray[np.float32]
"""The values ``[C, *S]`` of a scan."""

Floats = NDArray[np.float64]
"""Numbers such as an affine."""

MAX_BYTES = 2 * 1024**3
"""The largest scan that can be read, as float32 voxels: 2 GiB."""

_FEW_STEPS, _TOO_FEW_STEPS = 256, 8  # float32 steps between the lowest and the highest value
_PART = 1 << 20  # values that are scaled at once, in float64
_MOST_PACKED = 1032  # bytes from one byte: the limit of deflate (gzip, PNG), which Huffman codes of JPEG do not reach


DoubtKind = Literal["uneven", "incomplete", "tilted", "orientation", "spacing", "sheared"]


@dataclass(frozen=True)
class Doubt:
    """Why a scan that can be read may not be what was measured."""

    kind: DoubtKind  # one word, which policies refer to
    wrong: str  # what is doubtful
    consequence: str  # how the scan is read
    remedy: str  # what to do about it

    def __str__(self) -> str:
        return f"{self.wrong}; {self.consequence}"


@dataclass(eq=False)
class Scan:
    """One scan."""

    #: float32 ``[C, *S]``. Volumes have the file's own voxel order ``[C, X, Y, Z]``; pictures and single slices are
    #: ``[C, H, W]`` with rows from top to bottom, as displayed
    array: Voxels
    #: 4x4 float64, from the indices of ``S`` (a picture's third index is 0) to mm, RAS+. It is the identity for
    #: pictures (PNG, JPEG, BMP, TIFF of one page), which have no geometry
    affine: Floats
    modality: str | None = None  #: DICOM's modality, such as ``"CT"``, ``"MR"``, ``"DX"``; None for other formats
    #: the header of a NIfTI volume, with which :func:`~monai_diffae.data.scans.write_scan` writes a file with the same
    #: type, units and codes; None for other formats
    header: nib.Nifti1Header | None = None
    doubts: tuple[Doubt, ...] = ()  #: why it may not be what was measured
    volume: "Scan | None" = None  #: the volume with one slice that a 2D image is; None for other scans
    has_8_bits: bool = False  #: whether it is a picture of 8 bits

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.array.ndim - 1

    @property
    def lacks_geometry(self) -> bool:
        """Whether the place and size in mm are not known, as for pictures."""
        return self.spatial_dims == 2 and np.array_equal(self.affine, np.eye(4))

    @property
    def suffix(self) -> str:
        """Of files for its images: ``.png`` for pictures of 8 bits with one or three channels, else ``.nii.gz``."""
        return ".png" if self.has_8_bits and len(self.array) in (1, 3) else ".nii.gz"

    @property
    def empty(self) -> Voxels:
        """An image without content: ``array``'s shape, with the lowest value of each channel."""
        lowest = self.array.min(axis=tuple(range(1, self.array.ndim)), keepdims=True)
        return np.broadcast_to(lowest, self.array.shape)

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel spacing along each axis of ``S``, in mm."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, : self.spatial_dims], axis=0))


@dataclass(frozen=True)
class Header:
    """The size ``S`` (2 or 3 axes), affine and doubts of a file, as in `Scan`, known before its voxels are read."""

    shape: tuple[int, ...]
    affine: Floats
    doubts: tuple[Doubt, ...] = ()
    channels: int | None = 1  # of the file: three may be a grey picture stored as RGB; None if only its pixels tell


@functools.lru_cache(maxsize=100_000)
def warn_once(path: Path, text: str) -> None:
    """Log the warning ``file name: text`` once per process, however often the file is read."""
    logger.warning("%s: %s", path.name, text)


def as_float32(path: Path, values: NDArray[np.generic], scaling: tuple[float, float] | None = None) -> Voxels:
    """Convert to float32 in C order, scaled in float64; warn if under 256 steps remain, raise an error under 8."""
    rounded, is_exact = np.empty(values.shape, np.float32), True
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported later, as non-finite values
        for start in range(0, len(values), _PART):
            part = slice(start, start + _PART)
            exact = values[part] if scaling is None else values[part].astype(np.float64) * scaling[0] + scaling[1]
            rounded[part] = exact
            if scaling is None and (values.dtype.itemsize <= 2 or values.dtype == np.float32):
                continue  # exact
            is_exact = is_exact and bool(np.all((rounded[part] == exact) | ~np.isfinite(rounded[part])))
    if is_exact:
        return rounded
    finite = np.isfinite(rounded)
    low = float(np.min(rounded, where=finite, initial=np.inf))
    high = float(np.max(rounded, where=finite, initial=-np.inf))
    num_steps = (high - low) / float(np.spacing(np.float32(max(abs(low), abs(high)))))
    if num_steps >= _FEW_STEPS or bool(np.all(values == values.flat[0])):  # constant images are reported later
        return rounded
    values_are = f"its values, about {high:.2g}, are"
    if num_steps < _TOO_FEW_STEPS:
        raise problem(path, f"{values_are} too close together for float32", "subtract the offset and export it again")
    steps = f"only {num_steps:.0f} steps remain in float32"
    warn_once(path, f"{values_are} close together: {steps}; subtract the offset")
    return rounded


def check_regular(path: Path) -> None:
    """Raise an error if a path is a pipe, a device or a link to one, at which reading waits or never ends."""
    if path.exists() and not path.is_file():
        raise problem(path, "it is a pipe, device or folder, not a file", "leave it out")


def check_packed(path: PathLike, needed: int, stored: int) -> None:
    """Raise an error if a compressed file is too small for what its header declares, before memory is allocated."""
    if needed > _MOST_PACKED * stored:
        wrong = f"its header declares {needed} bytes, but its {stored} bytes cannot hold so many"
        raise problem(path, wrong, "copy or export it again")


def check_budget(path: PathLike, sizes: Sequence[int], components: int = 1) -> None:
    """Raise an error if the sizes are not those of a 2D or 3D image of up to :data:`MAX_BYTES`, before it is read."""
    text, gib = " x ".join(map(str, sizes)), math.prod(sizes) * components * 4 / 1024**3
    if any(n < 1 for n in sizes) or len(sizes) < 2:
        raise problem(path, f"its size is {text}", "export it again")
    if any(n > 1 for n in sizes[3:]):
        raise problem(path, f"a {len(sizes)}D file ({text}); expected 3D", "save its 3D volumes as files of their own")
    if gib * 1024**3 > MAX_BYTES:
        raise problem(path, f"its size is {text}, {gib:.1f} GiB; the limit is 2 GiB", "crop or resample it")


def check_spacing(path: PathLike, spacing_mm: Sequence[float] | Floats) -> None:
    """Raise an error if a spacing is not a positive number."""
    if not all(1e-9 < v < math.inf for v in spacing_mm):
        text = " x ".join(f"{v:g}" for v in spacing_mm)
        raise problem(path, f"its voxel spacing is {text} mm", "export it again with a valid spacing")


def check_affine(path: PathLike, affine: Floats) -> None:
    """Raise an error if spacings are not positive numbers, or axes are not independent."""
    if not np.isfinite(affine).all():
        raise problem(path, "its affine or spacing is not finite", "export it again with a valid spacing")
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    check_spacing(path, spacing_mm)
    if abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < 1e-4:
        raise problem(path, "its affine is singular (two axes point the same way)", "repair its sform or direction")
