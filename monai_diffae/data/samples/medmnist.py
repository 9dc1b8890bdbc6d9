"""Convert MedMNIST, small public data sets of real medical images, to a cohort of ordinary files.

MedMNIST: J Yang et al., "MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image
classification", Scientific Data 10, 41, 2023, https://medmnist.com, which also names the licence of each set.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.data.samples.virtual_cohort import find_sample_data, write_sample_data
from monai_diffae.errors import CohortError, ConfigError, MachineError, UnsafeInputError, check_installed
from monai_diffae.policies import PathLike

_DIGITS = 16  # of the checksum of the file


def medmnist_to_cohort(
    npz_or_name: PathLike,
    directory: PathLike,
    *,
    size: int = 28,
    overwrite: bool = False,
) -> Path:
    """Convert a MedMNIST set to a cohort: PNG images (NIfTI for 3D sets), and a table with splits and labels.

    The sets do not say which images belong to one patient, so the table has no column ``patient``. The 3D sets have
    neither voxel size nor orientation, so their NIfTI files have voxels of 1 without a unit.

    Args:
        npz_or_name: a MedMNIST ``.npz`` file, or the name of a set (``"pneumoniamnist"``), which the ``medmnist``
            package downloads into its own folder once.
        directory: folder for the cohort; created if missing.
        size: image size of a set that is given by name: 28, 64, 128 or 224 in 2D, 28 or 64 in 3D.
        overwrite: replace sample data that was made from something else.

    Returns:
        The path of ``cohort.csv`` with ``id``, ``image``, ``split`` and ``label``, or ``label_0``, ``label_1``, ...
    """
    directory = Path(directory)
    path = _find_npz(npz_or_name, size)
    digest = file_checksum(path)[:_DIGITS]  # a file of other labels has the same size
    parameters = {"kind": "MedMNIST", "file": path.name, "sha256": digest}
    if table := find_sample_data(directory, parameters, overwrite=overwrite):
        return table
    splits = _read_splits(path)

    def write() -> pd.DataFrame:
        return pd.DataFrame([row for split in splits for row in _write_split(directory, *split)])

    return write_sample_data(directory, parameters, write)


def _find_npz(npz_or_name: PathLike, size: int) -> Path:
    path = Path(npz_or_name)
    if path.is_file():
        return path
    name = os.fspath(npz_or_name)
    if path.suffix == ".npz" or path.name != name:
        raise ConfigError(f"{name}: no such file; give a MedMNIST .npz file or the name of a set")
    check_installed("medmnist", "medmnist", ", or give a .npz file")
    import medmnist

    if name not in medmnist.INFO:
        raise ConfigError(f"{name}: is not a MedMNIST set; use one of {', '.join(sorted(medmnist.INFO))}")
    info = medmnist.INFO[name]
    kind = getattr(medmnist, info["python_class"])
    if size not in kind.available_sizes:
        raise ConfigError(f"size: {name} is not available in size {size}; use one of {kind.available_sizes}")
    flag = "" if size == 28 else f"_{size}"
    try:
        kind(split="train", download=True, size=size, mmap_mode="r")
    except (RuntimeError, OSError, ValueError) as error:  # medmnist raises a RuntimeError for most problems
        raise MachineError(f"{name}: cannot be downloaded; fetch {info['url' + flag]}, and give its path") from error
    return Path(medmnist.info.DEFAULT_ROOT) / f"{name}{flag}.npz"


def _read_splits(path: Path) -> list[tuple[str, NDArray[np.uint8], NDArray[Any]]]:
    """Each split: its name, images ``[N, H, W]``, ``[N, H, W, 3]`` or ``[N, D, H, W]``, and labels ``[N, ...]``."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [name for name in ("train", "val", "test") if name != "test" or "test_images" in arrays]
            splits = [(name, arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in names]
    except Exception as error:  # numpy and zipfile raise many
        if "pickle" in str(error):
            wrong = "contains pickled objects, which could run code; use the original file"
            raise UnsafeInputError(f"{path.name}: {wrong}") from error
        raise CohortError(f"{path.name}: cannot be read as MedMNIST ({error}); download it again") from error
    for name, images, labels in splits:
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(labels) != len(images):
            raise CohortError(
                f"{path.name}: the split {name} has images {images.dtype} {list(images.shape)} and {len(labels)} "
                "labels; a MedMNIST file has uint8 [N, H, W], [N, H, W, 3] or [N, D, H, W] and N labels"
            )
    return splits


def _write_split(
    directory: Path, split: str, images: NDArray[np.uint8], labels: NDArray[Any]
) -> Iterator[dict[str, Any]]:
    is_volume = images.ndim == 4 and images.shape[-1] != 3
    for index, (image, values) in enumerate(zip(images, labels.reshape(len(labels), -1).tolist(), strict=True)):
        name = f"{split}-{index:06d}"
        relative = f"images/{name}.nii" if is_volume else f"images/{name}.png"
        if is_volume:
            nib.save(nib.Nifti1Image(image, np.eye(4)), directory / relative)
        else:
            Image.fromarray(image).save(directory / relative)
        columns = {"label": values[0]} if len(values) == 1 else {f"label_{i}": value for i, value in enumerate(values)}
        yield {"id": name, "image": relative, "split": split, **columns}
