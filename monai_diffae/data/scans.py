"""Read a scan file or DICOM series as an array with its geometry, and write it.

Everything is checked on reading: the result of :func:`read_scan` is complete, finite, not constant, and has the
dimensions and channels that the caller needs. Otherwise a :class:`~monai_diffae.errors.ScanError` of one line says why.
"""

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import affine_transform, gaussian_filter

from monai_diffae.data.fingerprints import CHANNEL, split_channel
from monai_diffae.data.formats import dicom, itk, nifti, pictures, tiff
from monai_diffae.data.formats.axes import Axis, flat_axis, flattened, ras_axes, slice_shape, slice_volume
from monai_diffae.data.formats.scan import (
    Doubt,
    Floats,
    Header,
    Scan,
    Voxels,
    as_float32,
    check_affine,
    check_budget,
    check_regular,
    warn_once,
)
from monai_diffae.data.scan_writing import write_scan
from monai_diffae.errors import ConfigError, DiffAEError, ScanError, counted, problem
from monai_diffae.policies import Colour, Doubtful, OtherGrids, PathLike, Uneven, check_choice

__all__ = [
    "SUFFIXES",
    "Axis",
    "Scan",
    "ScanError",
    "ScanNeeds",
    "read_geometry",
    "read_scan",
    "read_shape",
    "scan_suffix",
    "slice_volume",
    "write_scan",
]

logger = logging.getLogger(__name__)

_SAME_PLACE = 0.05  # voxels by which the corners of equal grids may differ
_HIGHEST_LABEL, _MOST_LABELS = 2**16 - 1, 256  # in a label map

NonFinite = Literal["error"] | float

_FORMATS = (nifti, dicom, itk, pictures, tiff)  # modules with SUFFIXES, read and read_header

SUFFIXES = tuple(suffix for each in _FORMATS for suffix in each.SUFFIXES)
"""The suffixes of files that can be read; DICOM files may also have none."""
_SUFFIXES_BY_END = {
    end: [s for s in SUFFIXES if s.endswith(f".{end}")] for end in {s.rpartition(".")[2] for s in SUFFIXES}
}


@dataclass(frozen=True)
class ScanNeeds:
    """What a caller needs of a scan, and how scans that differ are handled."""

    spatial_dims: int | None = None  #: 2 or 3; None: either. With ``flatten``, a volume with one slice counts as 2D
    channels: int | None = None  #: None: any. Grey images stored as RGB have one
    nonfinite: NonFinite = "error"  #: or a value that replaces NaN and infinite voxels; their number is logged
    #: ``refuse`` colour images if one channel is needed; convert them to ``grey`` (0.299 red + 0.587 green +
    #: 0.114 blue); or ``rgb``: grey images get three channels
    colour: Colour = "refuse"
    #: ``resample`` DICOM series whose slices are unevenly spaced, with a warning, or ``refuse`` them
    uneven: Uneven = "resample"
    #: ``warn`` of scans that may not be what was measured (no orientation, contradictory geometry, tilted or perhaps
    #: missing slices), or ``refuse`` them
    doubtful: Doubtful = "warn"
    flatten: bool = True  #: read a volume with one slice as a 2D image

    def __post_init__(self) -> None:
        for name, choices in (("colour", Colour), ("uneven", Uneven), ("doubtful", Doubtful)):
            check_choice(name, getattr(self, name), choices)


def read_scan(path: PathLike, needs: ScanNeeds = ScanNeeds()) -> Scan:
    """Read one scan: NIfTI, MGZ, NRRD, MHA, MHD, PNG, JPEG, BMP, TIFF, a DICOM file or a folder with one series.

    Args:
        path: the file or folder; ``folder#series=UID`` names one of several series in a folder, and ``file#channel=0``
            one of the channels of a file.
        needs: the dimensions and channels that the caller needs, and what is done with doubtful scans.

    Returns:
        The scan: float32 ``[C, X, Y, Z]`` in the file's voxel order, or ``[C, H, W]`` as displayed; affine in mm, RAS+.

    Raises:
        ScanError: the scan cannot be used: one line, ``file name: what is wrong; what to do``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     array = np.arange(24.0).reshape(1, 2, 3, 4)
        ...     path = write_scan(Path(folder) / "a.nii.gz", array, np.diag([1, 1, 3, 1.0]))
        ...     scan = read_scan(path, ScanNeeds(spatial_dims=3, channels=1))
        >>> scan.array.shape, scan.spacing_mm
        ((1, 2, 3, 4), (1.0, 1.0, 3.0))
    """
    scan = _read(path)
    apply_policy(Path(path), scan.doubts, needs)
    return fit_scan(Path(path), scan, needs)


def read_with_doubts(path: PathLike) -> Scan:
    """Read one scan of any dimensions and channels, as :func:`read_scan`, but leave its doubts to the caller."""
    return fit_scan(Path(path), _read(path), ScanNeeds())


def read_labels(path: PathLike) -> Scan:
    """Read a label map, which may be constant; a picture with black and white has the labels 0 and 1.

    Raises:
        ScanError: it cannot be read, or its values are not few whole numbers.
    """
    scan = flattened(_read(path))
    array = _fit_channels(Path(path), scan.array, 1, "refuse")
    classes = np.unique(array)
    if classes[0] < 0 or classes[-1] > _HIGHEST_LABEL or (classes != np.round(classes)).any():
        raise problem(
            path, "it has negative, large or fractional values, so it is no mask", "give whole numbers from 0"
        )
    if len(classes) > _MOST_LABELS:
        raise problem(path, f"it has {len(classes)} different values, so it is no mask", "give a label map")
    is_binary = is_picture(path) and classes[-1] == 255 and len(classes) == 2
    return replace(scan, array=array / np.float32(255) if is_binary else array)


def _read(path: PathLike) -> Scan:
    file, channel = split_channel(path)
    with _one_line_errors(path):
        if (reader := _format(file)) is nifti:  # of a large file, it converts one channel only
            return nifti.read(file, channel)
        scan: Scan = reader.read(file)
    return scan if channel is None else one_channel(scan, file, channel)


def one_channel(scan: Scan, file: Path, channel: int) -> Scan:
    """One channel of a scan, as a scan."""
    if channel >= len(scan.array):
        raise problem(
            file, f"it has {counted(len(scan.array), 'channel')}, so none with number {channel}", "count from 0"
        )
    return replace(scan, array=scan.array[channel : channel + 1])


def read_header(path: PathLike) -> Header:
    """Read the size and affine in the file's own axes, and the doubts about them, from the header."""
    file, channel = split_channel(path)
    with _one_line_errors(path):
        if (reader := _format(file)) is nifti:
            return nifti.read_header(file, channel)
        header: Header = reader.read_header(file)
    return header if channel is None else replace(header, channels=1)


def apply_policy(path: Path, doubts: Sequence[Doubt], needs: ScanNeeds = ScanNeeds()) -> None:
    """Log each doubt as a warning, once per process, or refuse the scan because of the first one."""
    for doubt in doubts:
        if (needs.uneven if doubt.kind == "uneven" else needs.doubtful) == "refuse":
            raise problem(path, doubt.wrong, doubt.remedy)
        warn_once(path, str(doubt))


def check_channels(path: PathLike, channels: int, colour: Colour = "refuse") -> None:
    """Raise the error of :func:`read_scan` about a scan's channels; voxels are read only if the header cannot tell."""
    usable = {channels, *({"grey": (3,), "rgb": (1,)}.get(colour, ()))}
    if read_header(path).channels not in usable:
        read_scan(path, ScanNeeds(channels=channels, colour=colour))


def read_shape(path: PathLike) -> tuple[int, ...]:
    """Read the size from the header: voxels ``(R, A, S)`` of a volume in RAS order, or ``(H, W)`` of a 2D image."""
    return read_geometry(path)[0]


def read_geometry(path: PathLike) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Read the size, as :func:`read_shape`, and the voxel spacing in mm along the same axes (1 for pictures)."""
    header = read_header(path)
    apply_policy(Path(path), header.doubts)
    return displayed_geometry(header.shape, header.affine)


def displayed_geometry(shape: tuple[int, ...], affine: Floats) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Size and voxel spacing in mm along R, A and S of a volume, or the rows and columns of a 2D image."""
    spacings = np.linalg.norm(affine[:3, : len(shape)], axis=0).tolist()
    order = [0, 1] if len(shape) == 2 else np.argsort(ras_axes(affine)).tolist()
    flat = flat_axis([shape[axis] for axis in order]) if len(shape) == 3 else None
    if flat is not None:
        order = [order[axis] for axis in slice_shape(range(3), flat)]
    return tuple(shape[axis] for axis in order), tuple(spacings[axis] for axis in order)


def scan_suffix(path: PathLike) -> str:
    """The file's suffix if it is one of :data:`SUFFIXES`, else ``""``."""
    name = os.fspath(path).lower()  # not as Path, which takes ten times as long for the many rows of a table
    if CHANNEL in name:
        name = os.path.basename(name).partition(CHANNEL)[0]  # noqa: PTH119
    for suffix in _SUFFIXES_BY_END.get(name.rpartition(".")[2], ()):
        if name.endswith(suffix):
            return suffix
    return ""


def is_picture(path: PathLike) -> bool:
    """Whether a scan has a suffix of PNG, JPEG, BMP or TIFF, which have no geometry."""
    return scan_suffix(path) in (*pictures.SUFFIXES, *tiff.SUFFIXES)


def may_be_dicom(path: PathLike) -> bool:
    """Whether a scan has a suffix of DICOM, or none, as series do: its file need not exist."""
    return scan_suffix(dicom.split_text(path)[0]) in ("", *dicom.SUFFIXES)


def _format(path: PathLike) -> Any:
    """The module of a file's format, after the checks that do not depend on the format."""
    if not os.fspath(path):  # Path("") would be the working directory
        raise ScanError("the path of a scan is empty; give a file, or a folder with a DICOM series")
    path, (folder, uid) = Path(path), dicom.split_series(path)
    if folder.is_dir():
        return dicom
    if uid is not None or not path.exists():
        raise problem(folder, "there is no such file", "check the path")
    check_regular(path)
    with open(path, "rb") as stream:  # without permission it raises here; libraries would call the file damaged
        if not stream.read(1):
            raise problem(path, "the file is empty", "copy it again")
    suffix = scan_suffix(path)
    for each in _FORMATS:
        if suffix in each.SUFFIXES or (each is dicom and dicom.is_dicom(path)):
            return each
    is_of_pair = path.name.lower().endswith((".img", ".img.gz"))
    todo = "give its .hdr file" if is_of_pair else "convert it to .nii.gz, .png or DICOM"
    raise problem(path, "files with this suffix cannot be read", todo)


@contextmanager
def _one_line_errors(path: PathLike) -> Iterator[None]:
    """Turn errors of the machine or of a library that reads a file into one line."""
    try:
        yield
    except DiffAEError:
        raise
    except PermissionError as error:
        raise problem(path, "there is no permission to read it", "change its permissions (chmod u+r)") from error
    except MemoryError as error:
        raise problem(path, "it does not fit into memory", "crop or resample it") from error
    except Exception as error:  # random bytes can fail anywhere in a library
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise problem(path, f"it cannot be read ({reason})", "copy or export it again") from error


# -- checks that every scan passes -------------------------------------------------------------------------------------

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as PIL and OpenCV convert to grey
_ROUNDING = 2  # JPEG may round the three channels of a grey picture differently


def fit_scan(name: Path, scan: Scan, needs: ScanNeeds) -> Scan:
    """The scan with the dimensions and channels that a caller needs, and finite values."""
    scan = _fit_dims(name, flattened(scan) if needs.flatten else scan, needs.spatial_dims)
    if scan.header is None or len(scan.array) == 1:
        scan.array = _fit_channels(name, scan.array, needs.channels, needs.colour)
    elif needs.channels not in (None, len(scan.array)):
        wrong = f"it has {counted(len(scan.array), 'channel')}, expected {needs.channels}"
        raise problem(name, wrong, f"choose one, e.g. {CHANNEL}0 after the file's name, or list its sequences")
    scan.array = _fit_values(name, scan.array, needs.nonfinite)
    return scan


def scan_of_array(
    array: ArrayLike,
    affine: ArrayLike | None = None,
    name: str = "image",
    needs: ScanNeeds = ScanNeeds(),
) -> Scan:
    """Make a scan of an array ``[C, X, Y, Z]`` or ``[C, H, W]`` in memory, with the checks of :func:`read_scan`."""
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
    return fit_scan(path, Scan(as_float32(path, values), matrix), needs)


def check_colour(colour: Colour, channels: int) -> None:
    """Raise an error if ``colour`` does not go with the number of channels of the model."""
    needed = {"grey": 1, "rgb": 3}.get(colour, channels)
    if needed != channels:
        raise ConfigError(
            f"colour: {colour} has {counted(needed, 'channel')}, but in_channels is {channels}; choose another"
        )


def _fit_dims(path: Path, scan: Scan, spatial_dims: int | None) -> Scan:
    if spatial_dims in (None, scan.spatial_dims):
        return scan
    sizes = " x ".join(map(str, scan.array.shape[1:]))
    if spatial_dims == 2:
        raise problem(path, f"a 3D volume ({sizes}), expected a 2D image", "slice it, or use a 3D model")
    todo = "leave it out or give its whole series, or use a 2D model"
    raise problem(path, f"a 2D image ({sizes}), expected a 3D volume", todo)


def _fit_channels(path: Path, array: Voxels, channels: int | None, colour: Colour) -> Voxels:
    if len(array) == 3 and channels in (None, 1):
        if float(np.ptp(array, axis=0).max()) <= _ROUNDING:
            array = array[:1]
        elif colour == "grey":
            array = np.tensordot(np.array(_LUMINANCE, np.float32), array, 1)[None]
    if len(array) == 1 and colour == "rgb":
        array = np.repeat(array, 3, axis=0)
    if channels is not None and len(array) != channels:
        is_colour = len(array) == 3 and channels == 1
        text = f"it has {counted(len(array), 'channel')}{' (colour)' if is_colour else ''}, expected {channels}"
        todo = "set colour=grey, train on rgb, or convert it" if is_colour else "convert it, or train a model for them"
        raise problem(path, text, todo)
    return array


def _fit_values(path: Path, array: Voxels, nonfinite: NonFinite) -> Voxels:
    num_bad = array.size - int(np.isfinite(array).sum())
    if num_bad and nonfinite == "error":
        raise problem(path, "it has voxels that are NaN or infinite", "repair it, or set nonfinite to a fill value")
    if num_bad:
        text = "%s: %s, NaN or infinite, replaced with %g"
        logger.warning(text, path.name, counted(num_bad, "voxel"), nonfinite)
        array = np.where(np.isfinite(array), array, np.float32(nonfinite))
    if array.min() == array.max():
        wrong = f"every voxel has the same value ({float(array.flat[0]):g})"
        raise problem(path, wrong, "check the export, or omit it")
    return array


# -- other grids -------------------------------------------------------------------------------------------------------


def on_grid(
    path: PathLike, scan: Scan, target: Scan, other_grids: OtherGrids = "resample", *, nearest: bool = False
) -> Voxels:
    """The values ``[C, *S]`` of a volume on the grid of another one, linearly or the nearest; its lowest value outside.

    Raises:
        ScanError: the volumes do not overlap, the images are 2D, or ``other_grids`` is ``refuse``.
    """
    sizes, expected = (" x ".join(map(str, each.array.shape[1:])) for each in (scan, target))
    to_own = np.linalg.solve(scan.affine, target.affine)  # from indices of the target to those of the scan
    matrix, offset = to_own[:3, :3], to_own[:3, 3]
    sides = [(0, size - 1) for size in target.array.shape[1:]] + [(0, 0)] * (3 - target.spatial_dims)
    corners = np.array([*itertools.product(*sides)])
    own_corners = corners @ matrix.T + offset
    if sizes == expected and np.abs(own_corners - corners).max() < _SAME_PLACE:
        return scan.array
    if other_grids == "refuse" or (scan.spatial_dims, target.spatial_dims) != (3, 3):
        wrong = f"its size or position is not that of the first image ({sizes}, {expected})"
        raise problem(path, wrong, "resample it to that grid")
    if (own_corners.max(axis=0) < 0).any() or (own_corners.min(axis=0) > np.array(scan.array.shape[1:]) - 1).any():
        raise problem(path, "it lies outside of the first image", "check that both are of one patient and session")
    warn_once(Path(path), f"it is resampled from {sizes} to {expected}, the grid of the first image")
    to_target = partial(affine_transform, matrix=matrix, offset=offset, output_shape=target.array.shape[1:])
    if nearest:
        return np.stack([to_target(channel, order=0, mode="grid-constant") for channel in scan.array])
    sigma = [max(0.0, (step - 1) / 2) for step in np.abs(matrix).max(axis=1)]
    smooth = [gaussian_filter(channel, sigma, mode="nearest") if any(sigma) else channel for channel in scan.array]
    inside = to_target(np.ones(scan.array.shape[1:], np.uint8), order=0, mode="grid-constant") > 0
    return np.stack([np.where(inside, to_target(each, order=1, mode="nearest"), each.min()) for each in smooth])
