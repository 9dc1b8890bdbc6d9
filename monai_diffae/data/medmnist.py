"""MedMNIST, small public sets of real medical images, as a cohort of ordinary files.

MedMNIST: J Yang et al., "MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image
classification", Scientific Data 10, 41, 2023, https://medmnist.com. Each set has its own licence, named there.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.sample_folders import claim_folder, is_complete, write_image
from monai_diffae.errors import CohortError, ConfigError, MachineError, UnsafeInputError

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class _Part:
    """One split: images ``[N, H, W]``, ``[N, H, W, 3]`` or ``[N, D, H, W]`` uint8; labels ``[N, L]``."""

    split: str
    images: NDArray[np.uint8]
    labels: NDArray[Any]


def medmnist_to_cohort(
    npz_or_name: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    size: int = 28,
    max_cases: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a MedMNIST set as a cohort: PNG images (NIfTI for the 3D sets), and a table with splits and labels.

    The sets do not say which images are of one patient, so that the table has no column for it; their splits are by
    patient where the sources knew. The 3D sets say neither voxel size nor orientation; their NIfTI files have voxels
    of 1 and no claim to a unit.

    Args:
        npz_or_name: the path of a MedMNIST ``.npz`` file, or with a network the name of a set (``"pneumoniamnist"``),
            which the ``medmnist`` package then downloads into its own folder once.
        directory: where the cohort goes; created if missing.
        size: for a name, which edition: 28, or 64, 128, 224 (2D), 64 (3D). A file has the size that it has.
        max_cases: at most so many of each split, the first ones; all when not given.
        overwrite: replace sample data that was made from something else.

    Returns:
        The path of ``cohort.csv``, written last: ``id``, ``image`` (relative to it), ``split``, and ``label``, or
        ``label_0``, ``label_1``, ... where an image has several. A second call returns at once.

    Raises:
        ConfigError: no such file or set, no such size, or the folder holds something else.
        CohortError: the file is no MedMNIST file.
        MachineError: the package is missing, the download failed, or the folder cannot be written.
        UnsafeInputError: the file holds pickled objects.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images, labels = np.zeros((2, 28, 28), np.uint8), np.array([[0], [1]])
        ...     arrays = {f"{s}_{k}": v for s in _SPLITS for k, v in (("images", images), ("labels", labels))}
        ...     np.savez(f"{folder}/tiny.npz", **arrays)
        ...     pd.read_csv(medmnist_to_cohort(f"{folder}/tiny.npz", f"{folder}/tiny")).columns.tolist()
        ['id', 'image', 'split', 'label']
    """
    if max_cases is not None and max_cases < 1:
        raise ConfigError(f"max_cases: {max_cases} is below 1")
    directory = Path(directory)
    path = _find_npz(npz_or_name, size)
    parameters = {"kind": "MedMNIST", "file": path.name, "bytes": path.stat().st_size, "max_cases": max_cases}
    if is_complete(directory, parameters) and not overwrite:
        return directory / "cohort.csv"
    parts = list(_read_parts(path, max_cases))
    claim_folder(directory, parameters, overwrite=overwrite)
    rows = [row for part in parts for row in _write_part(part, directory)]
    table = pd.DataFrame(rows)
    return write_atomic(directory / "cohort.csv", lambda temporary: table.to_csv(temporary, index=False))


def _find_npz(npz_or_name: str | os.PathLike[str], size: int) -> Path:
    path = Path(npz_or_name)
    if path.is_file():
        return path
    name = os.fspath(npz_or_name)
    if path.suffix == ".npz" or path.name != name:
        raise ConfigError(f"{name}: no such file; give the path of a MedMNIST .npz file or the name of a set")
    try:
        import medmnist
    except ImportError as error:
        raise MachineError(
            f"{name}: the medmnist package, which downloads the set, is not installed; "
            "pip install 'monai-diffae[medmnist]', or give the path of a .npz file"
        ) from error
    if name not in medmnist.INFO:
        raise ConfigError(f"{name}: no MedMNIST set; there are {', '.join(sorted(medmnist.INFO))}")
    info = medmnist.INFO[name]
    kind = getattr(medmnist, info["python_class"])
    if size not in kind.available_sizes:
        raise ConfigError(f"size: {name} has no edition of {size}; there are {kind.available_sizes}")
    flag = "" if size == 28 else f"_{size}"
    root = medmnist.info.DEFAULT_ROOT
    try:
        kind(split="train", download=True, size=size, mmap_mode="r")
    except (RuntimeError, OSError, ValueError) as error:  # medmnist wraps whatever went wrong into a RuntimeError
        raise MachineError(
            f"{name}: cannot be downloaded; fetch {info['url' + flag]} on a machine with a network and give its path"
        ) from error
    return Path(root) / f"{name}{flag}.npz"


def _read_parts(path: Path, max_cases: int | None) -> Iterator[_Part]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for split in _SPLITS:
                images, labels = arrays[f"{split}_images"][:max_cases], arrays[f"{split}_labels"][:max_cases]
                yield _checked(path, split, images, labels)
    except KeyError as error:
        raise CohortError(f"{path}: {error.args[0]}; a MedMNIST file has <split>_images and <split>_labels") from error
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise CohortError(f"{path}: cannot be read as .npz ({error}); copy it again") from error
    except ValueError as error:
        if isinstance(error, CohortError):
            raise
        if "pickle" not in str(error):
            raise CohortError(f"{path}: cannot be read as .npz ({error}); copy it again") from error
        raise UnsafeInputError(f"{path}: holds pickled objects, which could run code; it is refused") from error


def _checked(path: Path, split: str, images: NDArray[Any], labels: NDArray[Any]) -> _Part:
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise CohortError(
            f"{path}: {split}_images is {images.dtype} {list(images.shape)}; "
            "MedMNIST has uint8 [N, H, W], [N, H, W, 3] or [N, D, H, W]"
        )
    if len(labels) != len(images):
        raise CohortError(f"{path}: {split} has {len(images)} images and {len(labels)} labels")
    return _Part(split, images, labels.reshape(len(labels), -1))


def _write_part(part: _Part, directory: Path) -> Iterator[dict[str, Any]]:
    is_volume = part.images.ndim == 4 and part.images.shape[-1] != 3
    for index, (image, labels) in enumerate(zip(part.images, part.labels, strict=True)):
        name = f"{part.split}-{index:06d}"
        relative = f"images/{name}.nii" if is_volume else f"images/{name}.png"
        write_image(directory / relative, _as_nifti(image) if is_volume else _as_png(image))
        values = [label.item() for label in labels]
        named = {"label": values[0]} if len(values) == 1 else {f"label_{i}": value for i, value in enumerate(values)}
        yield {"id": name, "image": relative, "split": part.split, **named}


def _as_nifti(image: NDArray[np.uint8]) -> bytes:
    return nib.Nifti1Image(image, np.eye(4)).to_bytes()


def _as_png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
