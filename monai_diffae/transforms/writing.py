"""Write images: in a scan's own space or the model's grid, by functions and as MONAI transforms."""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple, ensure_tuple_rep
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from torch import Tensor

from monai_diffae.data.cases import Case, safe_file_name
from monai_diffae.data.formats.axes import in_file_axes
from monai_diffae.data.formats.dicom import is_dicom, split_series
from monai_diffae.data.formats.scan import Floats, Voxels
from monai_diffae.data.progress import Failure
from monai_diffae.data.scan_writing import INTEGERS, SYNTHETIC, check_series, smallest_type, write_like, write_series
from monai_diffae.data.scans import Scan, is_picture, write_scan
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.policies import PathLike, Range, check_choice
from monai_diffae.transforms.native import NativeSpace, check_invertible
from monai_diffae.transforms.reading import Item

logger = logging.getLogger(__name__)

Grid = Literal["native", "model"]


def write_native(
    path: PathLike,
    array: NDArray[Any],
    scan: Scan,
    dtype: DTypeLike | None = None,
    *,
    description: str = "",
) -> Path:
    """Write an image in a scan's space as NIfTI or NRRD with the scan's affine, or as PNG, atomically.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.nrrd`` or, for 2D images, ``.png``: see ``scan.suffix``.
        array: ``[C', *native S]`` in the scan's units, or a map with values and channels of its own.
        scan: the scan.
        dtype: data type of the file; uint8 for masks, float32 for maps and differences. With integers, values are
            rounded; values that do not fit are clipped, and their number is logged. None, for an image in the scan's
            units: for a NIfTI volume that of the scan's file, if it holds the array; otherwise, if the scan has whole
            numbers, the smallest integer type that holds both; else float32. For PNG, values are clipped to 0..255.
        description: for NIfTI: the text ``descrip`` of the header.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> scan = Scan(np.zeros((1, 2, 2), np.float32), np.eye(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_native(Path(folder) / "a.png", np.full((1, 2, 2), 37.2), scan)
        ...     np.asarray(Image.open(path)).tolist()
        [[37, 37], [37, 37]]
    """
    name = Path(path).name
    if array.shape[1:] != scan.array.shape[1:]:
        sizes = f"{list(array.shape)}, but the scan's is {list(scan.array.shape)}"
        raise ConfigError(f"{name}: the size is {sizes}; convert it to the scan's space first")
    if name.lower().endswith(".png"):
        if dtype is not None and np.dtype(dtype) not in (np.uint8, np.bool_):
            raise ConfigError(f"{name}: PNG holds uint8, not {np.dtype(dtype)}; use .nii.gz or .nrrd, or write uint8")
        return write_scan(path, array, value_range=(0, 255))
    array, scan = in_file_axes(array, scan)
    header, is_nifti = scan.header, name.endswith((".nii", ".nii.gz"))
    # the header of a file with several channels fits no single one
    if header is not None and is_nifti and len(array) == 1 and array.size == math.prod(header.get_data_shape()):
        return write_like(Path(path), array, header, dtype, description)
    affine = None if scan.lacks_geometry else scan.affine
    dtype = _stored_type(array, scan) if dtype is None else dtype
    return write_scan(path, array, affine, dtype=dtype, description=description)


def _stored_type(array: NDArray[Any], scan: Scan) -> DTypeLike:
    # decided by the values: with a slope, or after an export of integers as floats, the file's type says little
    if not (np.equal(np.round(scan.array), scan.array).all() and np.isfinite(array).all()):
        return np.float32
    low, high = min(scan.array.min(), array.min()), max(scan.array.max(), array.max())
    return smallest_type(float(low), float(high), INTEGERS)


def image_suffix(shape: Sequence[int], source: str = ".png", is_colour: bool = False) -> str:
    """Return ``.png`` for a grey or colour 2D image ``[C, *S]`` of a picture, else ``.nii.gz``."""
    fits = len(shape) == 3 and (shape[0] == 1 or (shape[0] == 3 and is_colour))
    return ".png" if fits and is_picture(source) else ".nii.gz"


def write_image(
    path: Path,
    image: Tensor,
    model_range: Range,
    source: str = ".png",
    affine: Floats | None = None,
    is_colour: bool = False,
) -> Path:
    """Write ``path`` with a suffix from an image (C, *S): 8-bit PNG if the scan ``source`` is a picture, else NIfTI."""
    values, suffix = image.detach().float().cpu().numpy(), image_suffix(image.shape, source, is_colour)
    file = path.with_name(f"{path.name}{suffix}")
    value_range = model_range if suffix == ".png" else None
    return write_scan(file, values, affine, value_range=value_range, description=SYNTHETIC)


def read_image(path: Path, model_range: Range) -> Tensor:
    """Read a file of :func:`write_image`: (C, *S), or (C, H, W, 1) for a 2D image in a NIfTI file."""
    low, high = model_range
    values: NDArray[np.floating[Any]]
    if path.suffix == ".png":
        values, num_axes = np.asarray(Image.open(path), np.float32) / 255 * (high - low) + low, 2
    else:
        values, num_axes = nib.Nifti1Image.from_filename(path).get_fdata(dtype=np.float32), 3
    return torch.from_numpy(values[None] if values.ndim == num_axes else np.moveaxis(values, -1, 0))


def write_case_image(
    folder: Path, name: str, native: NativeSpace, array: Voxels, case: Case, dicom: str | None = None
) -> Path:
    """Write an image of a case as ``folder/<name>``; with ``dicom``, a description, also as a series in ``dicom/``."""
    file = write_native(folder / f"{name}{native.scan.suffix}", array, native.scan, description=SYNTHETIC)
    if dicom is not None and is_dicom_case(case):
        target = folder / "dicom" / (name if native.scan.spatial_dims == 3 else f"{name}.dcm")
        write_series(target, array, str(case.images["image"]), dicom)
    return file


def unwritable_series(cases: Sequence[Case]) -> list[Failure]:
    """The DICOM cases that cannot be written as new series; logs a warning if no case is DICOM."""
    failures: list[Failure] = []
    series = [case for case in cases if is_dicom_case(case)]
    if not series:
        logger.warning("dicom: none of the cases is a DICOM file or series as a whole, so no series is written")
    for case in series:
        try:
            check_series(case.first_file)
        except ScanError as error:
            failures.append(Failure(case.id, case.file, str(error)))
    return failures


def is_dicom_case(case: Case) -> bool:
    """Return whether a case is one whole DICOM file or series."""
    image = case.images["image"]
    if case.slice_index is not None or isinstance(image, tuple):
        return False
    folder, _ = split_series(image)
    return folder.is_dir() or is_dicom(folder)


class WriteScand(MapTransform):
    """Writes each image to ``<directory>/<id>.nii.gz``, in the model's grid and range.

    An id that is not safe as a file name is replaced by one that is.

    Args:
        keys: images ``[C, *S]``; with several keys, each has a folder of its name.
        directory: folder for the files; created if missing.
        overwrite: replace existing files.

    Example:
        >>> import os
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = WriteScand("pred", folder)({"pred": torch.zeros(1, 4, 4), "id": "a"})
        ...     print(*os.listdir(folder))
        a.nii.gz
    """

    def __init__(self, keys: KeysCollection, directory: PathLike, overwrite: bool = False) -> None:
        super().__init__(keys)
        self.directory, self.overwrite = Path(directory), overwrite

    def __call__(self, data: Item) -> Item:
        """Write the item's images; the item itself is unchanged."""
        item = dict(data)
        for key in self.key_iterator(item):
            folder = self.directory if len(self.keys) == 1 else self.directory / str(key)
            path = folder / f"{safe_file_name(str(item['id']))}.nii.gz"
            if path.exists() and not self.overwrite:
                raise ConfigError(f"{path.name}: already exists; choose another output_dir, or set overwrite")
            folder.mkdir(parents=True, exist_ok=True)
            write_scan(path, torch.as_tensor(item[key]).detach().float().cpu().numpy())
        return item


class WriteReconstructiond(MapTransform):
    """Writes reconstructed images of a case to ``<directory>/<folder>/<file_name>.nii.gz`` or ``.png``.

    With grid ``native``, an image has its scan's shape, affine, units and, for NIfTI, data type; outside the model's
    field of view, it has the scan's lowest value, and the item gets ``field_share``, the share of the voxels inside.
    With grid ``model``, it lies in the model's grid and range.

    Args:
        keys: reconstructed images ``[C, *S]`` of an item, in the model's range. The item's ``id`` names its case.
        directory: the folder for the results; created if missing.
        cases: the cases that items can belong to.
        preprocessing: the bundle's preprocessing, which is inverted for grid ``native``.
        folders: one folder below ``directory`` per key; None: named after the keys.
        grid: ``native`` or ``model``.
        model_range: black and white of the model.
        affine: affine of the model's grid; None: voxels of 1 mm.
        dicom: write DICOM cases also as series, ``<directory>/<folder>/dicom/<file_name>``.
        overwrite: replace existing files.

    Example:
        >>> import os
        >>> import tempfile
        >>> from monai.transforms import Compose
        >>> from monai_diffae.data.scans import write_scan
        >>> from monai_diffae.transforms import ReadScand, ToModelRanged
        >>> preprocessing = Compose([ReadScand("image", 2), ToModelRanged("image", method="minmax")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scan = write_scan(Path(folder) / "scan.nii.gz", np.arange(16.0).reshape(1, 4, 4))
        ...     write = WriteReconstructiond("pred", folder, [Case("a", {"image": scan}, "a")], preprocessing)
        ...     _ = write({"pred": torch.zeros(1, 4, 4), "id": "a"})
        ...     print(*os.listdir(Path(folder) / "pred"))
        a.nii.gz
    """

    def __init__(
        self,
        keys: KeysCollection,
        directory: PathLike,
        cases: Sequence[Case],
        preprocessing: Callable[[Any], Any],
        *,
        folders: str | Sequence[str] | None = None,
        grid: Grid = "native",
        model_range: Range = (-1.0, 1.0),
        affine: Floats | None = None,
        dicom: bool = False,
        overwrite: bool = False,
    ) -> None:
        super().__init__(keys)
        check_choice("grid", grid, Grid)
        if dicom and grid == "model":
            raise ConfigError("dicom: DICOM series are written in the scan's own space; use grid native")
        if grid == "native":
            try:
                check_invertible(preprocessing)
            except ConfigError as error:
                raise ConfigError(f"{error}; or use grid model") from error
        names = ensure_tuple(self.keys if folders is None else folders)
        self.folders = [Path(directory) / str(name) for name in ensure_tuple_rep(names, len(self.keys))]
        self.cases = {case.id: case for case in cases}
        self.preprocessing, self.grid = preprocessing, grid
        self.model_range, self.affine = (float(model_range[0]), float(model_range[1])), affine
        self.dicom, self.overwrite = dicom, overwrite

    def __call__(self, data: Item) -> Item:
        """Write the item's images; return the item, with grid ``native`` with ``field_share``."""
        item = dict(data)
        case = self.cases.get(str(item.get("id")))
        if case is None:
            raise ConfigError(f"id: '{item.get('id')}' is not a case of the cohort; give the item its case's id")
        native = NativeSpace(self.preprocessing, case.item()) if self.grid == "native" else None
        if native is not None:
            item["field_share"] = float(native.field.mean())
        for key, folder in self.key_iterator(item, self.folders):
            image = torch.as_tensor(item[key]).detach().float().cpu()
            is_colour = not isinstance(case.images["image"], tuple)  # of channels
            suffix = image_suffix(image.shape, case.file, is_colour) if native is None else native.scan.suffix
            file = folder / f"{case.file_name}{suffix}"
            if file.exists() and not self.overwrite:
                raise ConfigError(f"{file.name}: exists; set overwrite, or choose another output_dir")
            if native is None:
                write_image(folder / case.file_name, image, self.model_range, case.file, self.affine, is_colour)
            else:
                description = f"monai_diffae reconstruction from {folder.name}" if self.dicom else None
                write_case_image(folder, case.file_name, native, native.back(image), case, description)
        return item


# -- for tools that run the components of a bundle one by one ----------------------------------------------------------


class ToScanSpaced(MapTransform):
    """Brings a decoded image back to the space of its scan, as :meth:`NativeSpace.back` does.

    It is the ``postprocessing`` of a bundle, which an application like MONAI Label runs after the inferer. In MONAI's
    layout, a volume is float32 ``[1, X, Y, Z]``, a picture of whole numbers ``[W, H]`` of uint8, or uint16 if the scan
    has larger values, and any other 2D image float32 ``[1, H, W, 1]``. The size and affine are also set in the metadata
    of the scan's image, from which MONAI Label takes them.

    Args:
        keys: decoded images ``[1, *S]`` in the model's range, of an item with the preprocessed scan under ``image`` and
            its file under ``image_path``, where MONAI Label puts it.
        preprocessing: the bundle's preprocessing, which is inverted.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from monai.transforms import Compose
        >>> from monai_diffae.data.scans import write_scan
        >>> from monai_diffae.transforms import ReadScand, ToModelRanged
        >>> preprocessing = Compose([ReadScand("image", 2), ToModelRanged("image", method="minmax")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_scan(Path(folder) / "a.png", np.arange(6.0).reshape(1, 2, 3), value_range=(0, 255))
        ...     item = preprocessing({"image": str(path), "image_path": str(path)})
        ...     ToScanSpaced("pred", preprocessing)({**item, "pred": item["image"]})["pred"]
        metatensor([[0, 3],
                [1, 4],
                [2, 5]], dtype=torch.uint8)
    """

    def __init__(self, keys: KeysCollection, preprocessing: Callable[[Any], Any]) -> None:
        super().__init__(keys)
        check_invertible(preprocessing)
        self.preprocessing = preprocessing

    def __call__(self, data: Item) -> Item:
        """Replace the decoded images, and set the size and affine of the scan's image."""
        item: dict[Any, Any] = dict(data)
        path = str(item["image_path"])
        native = NativeSpace(self.preprocessing, {**item, "image": path})
        for key in self.key_iterator(item):
            pred = torch.as_tensor(item[key])
            if len(pred) != 1:
                raise ConfigError(f"{key}: has {len(pred)} channels, but applications take one; use reconstruct")
            array, scan = in_file_axes(native.back(pred), native.scan)
            array = _in_monai_layout(array, scan, path)
            affine = torch.from_numpy(scan.affine)
            item[key] = MetaTensor(torch.from_numpy(array), affine=affine)
            image = torch.as_tensor(item["image"])
            size = np.array(array.shape if array.ndim == 2 else array.shape[1:])
            geometry = {"spatial_shape": size, "original_affine": scan.affine}
            item["image"] = MetaTensor(image, meta={**getattr(image, "meta", {}), **geometry})
        return item


def _in_monai_layout(array: Voxels, scan: Scan, path: str) -> NDArray[Any]:
    """An image ``[1, *native S]`` in the layout and type that MONAI's writers expect."""
    if scan.spatial_dims == 3:
        return array
    dtype = smallest_type(float(scan.array.min()), float(scan.array.max()), (np.uint8, np.uint16))
    if not is_picture(path) or dtype is np.float32 or (scan.array % 1).any():
        return array[..., None]
    whole: NDArray[Any] = np.round(array[0]).clip(0, np.iinfo(dtype).max).astype(dtype)
    return np.ascontiguousarray(whole.T)
