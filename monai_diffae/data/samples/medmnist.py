"""Convert MedMNIST, small public data sets of real medical images, to a cohort of ordinary files.

MedMNIST: J Yang et al., "MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image
classification", Scientific Data 10, 41, 2023, https://medmnist.com, which also names the licence of each set.
"""

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from monai_diffae.data.atomic import write_csv
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.data.samples.virtual_cohort import claim_folder, is_complete, write_image
from monai_diffae.errors import CohortError, ConfigError, MachineError, UnsafeInputError, check_installed

_SPLITS = ("train", "val", "test")
_DIGITS = 16  # of the checksum of the file


def medmnist_to_cohort(
    npz_or_name: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    size: int = 28,
    max_cases: int | None = None,
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
        max_cases: use only the first cases of each split, at most this many.
        overwrite: replace sample data that was made from something else.

    Returns:
        The path of ``cohort.csv`` with ``id``, ``image``, ``split`` and ``label``, or ``label_0``, ``label_1``, ...
    """
    if max_cases is not None and max_cases < 1:
        raise ConfigError(f"max_cases: {max_cases} is below 1")
    directory = Path(directory)
    path = _find_npz(npz_or_name, size)
    digest = file_checksum(path)[:_DIGITS]  # a file of other labels has the same size
    parameters = {"kind": "MedMNIST", "file": path.name, "sha256": digest, "max_cases": max_cases}
    if is_complete(directory, parameters) and not overwrite:
        return directory / "cohort.csv"
    splits = list(_read_splits(path, max_cases))
    claim_folder(directory, parameters, overwrite=overwrite)
    rows = [row for split, images, labels in splits for row in _write_split(directory, split, images, labels)]
    return write_csv(directory / "cohort.csv", pd.DataFrame(rows))


def _find_npz(npz_or_name: str | os.PathLike[str], size: int) -> Path:
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
        raise MachineError(
            f"{name}: cannot be downloaded; fetch {info['url' + flag]} on a machine with a network and give its path"
        ) from error
    return Path(medmnist.info.DEFAULT_ROOT) / f"{name}{flag}.npz"


def _read_splits(path: Path, max_cases: int | None) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[Any]]]:
    """Each split: its name, images ``[N, H, W]``, ``[N, H, W, 3]`` or ``[N, D, H, W]``, and labels ``[N, ...]``."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for split in (s for s in _SPLITS if s != "test" or "test_images" in arrays):
                images, labels = arrays[f"{split}_images"][:max_cases], arrays[f"{split}_labels"][:max_cases]
                _check(path, split, images, labels)
                yield split, images, labels
    except CohortError:
        raise
    except KeyError as error:
        raise CohortError(f"{path}: {error.args[0]}; a MedMNIST file has <split>_images and <split>_labels") from error
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        if isinstance(error, ValueError) and "pickle" in str(error):
            wrong = "contains pickled objects, which could run code; use the original file"
            raise UnsafeInputError(f"{path}: {wrong}") from error
        raise CohortError(f"{path}: cannot be read as .npz ({error}); copy it again") from error


def _check(path: Path, split: str, images: NDArray[Any], labels: NDArray[Any]) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise CohortError(
            f"{path}: {split}_images is {images.dtype} {list(images.shape)}; "
            "a MedMNIST file has uint8 [N, H, W], [N, H, W, 3] or [N, D, H, W]"
        )
    if len(labels) != len(images):
        raise CohortError(f"{path}: {split} has {len(images)} images, but {len(labels)} labels; download it again")


def _write_split(
    directory: Path, split: str, images: NDArray[np.uint8], labels: NDArray[Any]
) -> Iterator[dict[str, Any]]:
    is_volume = images.ndim == 4 and images.shape[-1] != 3
    for index, (image, values) in enumerate(zip(images, labels.reshape(len(labels), -1).tolist(), strict=True)):
        name = f"{split}-{index:06d}"
        relative = f"images/{name}.nii" if is_volume else f"images/{name}.png"
        content = io.BytesIO()
        if is_volume:
            content.write(nib.Nifti1Image(image, np.eye(4)).to_bytes())
        else:
            Image.fromarray(image).save(content, format="PNG")
        write_image(directory / relative, content.getvalue())
        columns = {"label": values[0]} if len(values) == 1 else {f"label_{i}": value for i, value in enumerate(values)}
        yield {"id": name, "image": relative, "split": split, **columns}
