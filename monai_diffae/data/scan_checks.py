"""Checks that every scan passes, whether it was read from a file or is an array in memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.data.formats.scan import Scan, as_float32, check_affine, check_budget, problem
from monai_diffae.data.slices import flattened
from monai_diffae.errors import ConfigError
from monai_diffae.policies import Colour, check_choice

logger = logging.getLogger(__name__)

NonFinite = Literal["error"] | float

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as PIL and OpenCV convert to grey
_ROUNDING = 2  # JPEG may round the three channels of a grey picture differently


def fit_scan(
    name: Path,
    scan: Scan,
    spatial_dims: int | None,
    channels: int | None,
    nonfinite: NonFinite,
    *,
    colour: Colour = "refuse",
    flatten: bool = True,
) -> Scan:
    """Return the scan with the dimensions and channels that a caller needs, and with finite values.

    The arguments are those of :func:`~monai_diffae.data.scans.read_scan`; ``name`` is the scan's name in messages.
    """
    scan = _fit_dims(name, flattened(scan) if flatten else scan, spatial_dims)
    scan.array = _fit_channels(name, scan.array, channels, colour)
    scan.array = _fit_values(name, scan.array, nonfinite)
    return scan


def scan_of_array(
    array: ArrayLike,
    affine: ArrayLike | None = None,
    *,
    name: str = "image",
    spatial_dims: int | None = None,
    channels: int | None = None,
    nonfinite: NonFinite = "error",
    colour: Colour = "refuse",
    flatten: bool = True,
) -> Scan:
    """Make a scan of an array in memory, with the checks of :func:`~monai_diffae.data.scans.read_scan`.

    ``array`` is ``[C, X, Y, Z]``, or ``[C, H, W]`` with rows from top to bottom; ``affine`` 4x4, from voxel indices to
    mm, RAS+ (None: the identity). ``flatten`` takes a volume with one slice as a 2D image.

    Example:
        >>> scan_of_array(np.arange(6).reshape(1, 2, 3)).array.shape
        (1, 2, 3)
        >>> scan_of_array(np.full((1, 2, 2), np.nan))
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ScanError: image: 4 of its voxels are NaN or infinite; repair it, or set nonfinite to ...
    """
    path, values = Path(name), np.asarray(array)
    if values.dtype.kind not in "iufb":
        raise problem(path, f"its values are {values.dtype}, not plain numbers", "give one real number per voxel")
    if values.ndim not in (3, 4):
        axes = f"it has {values.ndim} axes, expected [C, H, W] or [C, X, Y, Z]"
        raise problem(path, axes, "add or remove axes, such as that of a batch")
    check_budget(path, values.shape[1:], len(values))
    matrix = np.eye(4) if affine is None else np.asarray(affine, np.float64)
    if matrix.shape != (4, 4):
        sizes = " x ".join(map(str, matrix.shape))
        raise problem(path, f"its affine is {sizes}, expected 4 x 4", "give the affine from voxel indices to mm")
    check_affine(path, matrix)
    scan = Scan(as_float32(path, values), matrix)
    return fit_scan(path, scan, spatial_dims, channels, nonfinite, colour=colour, flatten=flatten)


def check_colour(colour: str, channels: int) -> None:
    """Raise an error if ``colour`` is unknown, or does not go with the number of channels of the model.

    Example:
        >>> check_colour("rgb", 1)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: colour: rgb has 3 channels, but in_channels is 1; set in_channels to 3
    """
    check_choice("colour", colour, Colour)
    num_channels = {"grey": 1, "rgb": 3}.get(colour, channels)
    if num_channels != channels:
        raise ConfigError(
            f"colour: {colour} has {num_channels} channels, but in_channels is {channels}; "
            f"set in_channels to {num_channels}"
        )


def _fit_dims(path: Path, scan: Scan, spatial_dims: int | None) -> Scan:
    if spatial_dims in (None, scan.spatial_dims):
        return scan
    sizes = " x ".join(map(str, scan.array.shape[1:]))
    if spatial_dims == 2:
        raise problem(path, f"a 3D volume ({sizes}), expected a 2D image", "slice it, or use a 3D model")
    todo = "leave it out or give its whole series, or use a 2D model"
    raise problem(path, f"a 2D image ({sizes}), expected a 3D volume", todo)


def _fit_channels(path: Path, array: NDArray[np.float32], channels: int | None, colour: Colour) -> NDArray[np.float32]:
    if len(array) == 3 and channels in (None, 1):
        if float(np.ptp(array, axis=0).max()) <= _ROUNDING:
            array = array[:1]
        elif colour == "grey":
            array = np.tensordot(np.array(_LUMINANCE, np.float32), array, 1)[None]
    if len(array) == 1 and colour == "rgb":
        array = np.repeat(array, 3, axis=0)
    if channels is not None and len(array) != channels:
        is_colour = len(array) == 3 and channels == 1
        text = f"it has {len(array)} channels{' (colour)' if is_colour else ''}, expected {channels}"
        todo = "train with colour grey or rgb, or convert it" if is_colour else "convert it, or train a model for them"
        raise problem(path, text, todo)
    return array


def _fit_values(path: Path, array: NDArray[np.float32], nonfinite: NonFinite) -> NDArray[np.float32]:
    num_bad = array.size - int(np.isfinite(array).sum())
    if num_bad and nonfinite == "error":
        raise problem(
            path, f"{num_bad} of its voxels are NaN or infinite", "repair it, or set nonfinite to a fill value"
        )
    if num_bad:
        logger.warning("%s: %d NaN or infinite voxels were replaced with %g", path.name, num_bad, nonfinite)
        array = np.where(np.isfinite(array), array, np.float32(nonfinite))
    if array.min() == array.max():
        raise problem(
            path, f"every voxel has the same value ({float(array.flat[0]):g})", "check the export, or omit it"
        )
    return array
