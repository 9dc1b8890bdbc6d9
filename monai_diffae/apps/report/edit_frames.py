"""Small pictures of edited scans and of their differences, one sprite each per case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from monai_diffae.apps.report.case_images import pixels
from monai_diffae.apps.report.media import make_once
from monai_diffae.apps.report.sprites import Grid, Pixels, write_sprite
from monai_diffae.data.cases import safe_file_name
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.data.scans import Scan
from monai_diffae.data.slices import to_ras
from monai_diffae.pictures import in_colours, three_planes
from monai_diffae.transforms.case_images import read_image

_SIDE, _PLANE_SIDE = 224, 112  # most pixels per side, of an image and of one of three planes
_LEAST_LIMIT = 0.1  # end of the scale of differences, as a fraction of the range of the scan


@dataclass(frozen=True)
class EditFrames:
    """The sprites of a folder that ``edit`` wrote.

    Attributes:
        rows: its table, one row per case and strength.
        folder: the folder of the sprites.
        aspect: width over height of a frame.
    """

    rows: pd.DataFrame
    folder: Path
    aspect: float

    @property
    def strengths(self) -> list[float]:
        """The strengths of the edits, ascending."""
        return sorted(self.rows["strength"].unique())

    def file(self, case_id: str, kind: str) -> Path:
        """The sprite of a case: ``images`` or ``differences``."""
        return self.folder / f"{safe_file_name(case_id)}_{kind}.webp"


def make_edit_frames(edits: Path, folder: Path, file_names: Mapping[str, str], *, overwrite: bool) -> EditFrames:
    """Write the sprites unless they are there.

    Args:
        edits: the folder that ``edit`` wrote.
        folder: the folder for the sprites.
        file_names: how the files of each case begin.
        overwrite: replace existing ones.
    """
    rows = pd.read_csv(edits / "edits.csv", dtype={"id": str})
    frames = EditFrames(rows, folder, 1.0)
    ids = list(dict.fromkeys(rows["id"]))
    files = [frames.file(name, kind) for name in ids for kind in ("images", "differences")]

    def make() -> Mapping[str, Any]:
        grid, shape = Grid(len(frames.strengths), len(frames.strengths)), (1, 1)
        for name in ids:
            images, differences = _pictures(edits, file_names[name], frames.strengths)
            write_sprite(images, grid, frames.file(name, "images"))
            write_sprite(differences, grid, frames.file(name, "differences"))
            shape = images.shape[1:3]
        return {"aspect": shape[1] / shape[0]}

    made_from = {"edits": file_checksum(edits / "edits.csv")}
    figures = make_once(folder / "frames.json", files, made_from, make, overwrite=overwrite)
    return EditFrames(rows, folder, figures["aspect"])


def _pictures(edits: Path, file_name: str, strengths: Sequence[float]) -> tuple[Pixels, Pixels]:
    """Frames (A, H, W, 3) of the edited images, and of their differences in colours."""
    images = torch.stack(list(_read(edits / "images", file_name, strengths)), dim=1)
    differences = torch.stack(list(_read(edits / "differences", file_name, strengths)), dim=1)
    plain = images[:, list(strengths).index(0)]
    low, high = np.percentile(plain[plain.isfinite()].numpy(), (0.5, 99.5)).tolist()
    high = max(high, low + 1e-6)
    limit = max(float(differences.abs().max()), _LEAST_LIMIT * (high - low))
    colours = in_colours(differences.movedim(1, 0), limit, model_range=(0.0, 1.0))
    return pixels(images, (low, high)), pixels(colours.movedim(0, 1), (0.0, 1.0))


def _read(folder: Path, file_name: str, strengths: Sequence[float]) -> Iterator[Tensor]:
    for strength in strengths:
        files = (folder / f"{file_name}_{strength:+.2f}{suffix}" for suffix in (".png", ".nii.gz"))
        yield _picture(next(file for file in files if file.is_file()))


def _picture(file: Path) -> Tensor:
    """An image (C, H, W) in a square, or three planes of a volume side by side; a large one is scaled down."""
    image = read_image(file, (0.0, 255.0))
    image = image[..., 0] if image.ndim == 4 and image.shape[-1] == 1 else image
    if image.ndim == 3:
        lengths = [float(length) for length in image.shape[1:]]
        return _fitted(image[None], lengths, min(_SIDE, max(image.shape[1:])))[0]
    volume = to_ras(Scan(image.numpy(), np.asarray(nib.Nifti1Image.from_filename(file).affine)))
    lengths_mm = np.array(volume.array.shape[1:]) * np.linalg.norm(volume.affine[:3, :3], axis=0)
    cube = torch.from_numpy(np.ascontiguousarray(volume.array, np.float32))[None]
    planes = three_planes(_fitted(cube, lengths_mm.tolist(), _PLANE_SIDE))
    return planes[0].nan_to_num(posinf=0.0)


def _fitted(image: Tensor, lengths: Sequence[float], side: int) -> Tensor:
    """An image (1, C, *S) scaled so that the longest side has ``side`` pixels, with the lowest value around it."""
    sizes = [max(1, round(length * side / max(lengths))) for length in lengths]
    smaller = [min(size, own) for size, own in zip(sizes, image.shape[2:], strict=True)]
    mode = "bilinear" if len(sizes) == 2 else "trilinear"
    scaled = nn.functional.interpolate(nn.functional.interpolate(image, smaller, mode="area"), sizes, mode=mode)
    spare = [side - size for size in reversed(sizes)]  # of the last axis first
    padding = [n for each in spare for n in (each // 2, each - each // 2)]
    background = 0.0 if float(scaled.min()) < 0 < float(scaled.max()) else float(scaled.min())
    return nn.functional.pad(scaled, padding, value=background)
