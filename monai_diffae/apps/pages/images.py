"""The images of a report's cases: reconstructions and edits as files, and thumbnails inside the page."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from monai_diffae.apps.html import data_address
from monai_diffae.apps.pages.data import ReportData
from monai_diffae.bundle import TrainedBundle
from monai_diffae.data.atomic import write_atomic, write_json
from monai_diffae.data.cases import safe_file_name
from monai_diffae.data.fingerprints import file_checksum, json_digest
from monai_diffae.data.formats.axes import ras_shape, slice_volume
from monai_diffae.data.scans import read_scan
from monai_diffae.errors import ScanError
from monai_diffae.pictures import fitted, in_colours, plane_slices, shown, side_by_side, thumbnail
from monai_diffae.transforms.writing import read_image

Pixels = NDArray[np.uint8]

PANELS = ("input", "z_sem", "z_sem_difference", "x_T", "x_T_difference")
LIMIT = 0.25  # the end of the scale of differences of reconstructions, as a fraction of the model's range

_PLANES = ("axial", "coronal", "sagittal")
_LEAST_SIDE, _TALLEST = 128, 16_383  # pixels; WebP pictures cannot be taller
_MOST_THUMBNAILS, _THUMBNAIL_SIDE = 2048, 96
_EDIT_SIDE, _EDIT_PLANE_SIDE = 224, 112  # of an image, and of one of three planes
_LEAST_EDIT_LIMIT = 0.1  # the end of the scale of differences of edits, as a fraction of the range of the scan


@dataclass(frozen=True)
class Strips:
    """One panel of a reconstructed case: a file per plane, with the slices below each other."""

    files: Mapping[str, Path]
    counts: Mapping[str, int]  # of slices
    sizes: Mapping[str, str]  # width and height of a slice, as CSS writes its aspect ratio


class ReportImages:
    """Reads the cases of a report, which has a cohort, through the bundle's preprocessing."""

    def __init__(self, data: ReportData) -> None:
        self._data, self.folder = data, data.folder / "media"

    def read(self, ids: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Ids and images (C, *S) in the model's range; cases that cannot be read are left out."""
        names = {self._data.pictured[name].id: name for name in ids}
        cases = [self._data.pictured[name] for name in names.values()]
        read = self._data.session.read(cases, self.folder, "pictures_failures.csv", named=True)
        yield from ((names[case.id], read.dataset[i]["image"]) for i, case in enumerate(read.cases))

    def thumbnails(self, ids: Sequence[str], most: int = _MOST_THUMBNAILS) -> dict[str, str]:
        """Pictures of the first ``most`` cases, as addresses by id; of volumes the middle slice."""
        ids = list(dict.fromkeys(ids))[:most]
        made_from = [file_checksum(self._data.embeddings), self._data.summary["sha256"], ids]
        return _thumbnails(self.folder / "thumbnails", made_from, self.read(ids), self._data)

    def scans(self, ids: Sequence[str]) -> dict[str, Path]:
        """Write pictures of the scans themselves, by id; of volumes the axial middle slice."""
        files = {}
        for name in dict.fromkeys(ids):
            case = self._data.pictured[name]
            with suppress(ScanError):  # it was changed since it was embedded
                scan = read_scan(case.first_file)
                if scan.spatial_dims == 3:
                    scan = slice_volume(scan, "axial", ras_shape(scan)[2] // 2)
                low, high = np.percentile(scan.array, (0.5, 99.5)).tolist()
                picture = shown(torch.from_numpy(scan.array)[None], (low, max(high, low + 1e-6)), self._data.is_colour)
                files[name] = _write(side_by_side(picture)[0], self.folder / "scans" / f"{case.file_name}.webp")
        return files

    def reconstructions(self) -> dict[str, dict[str, Strips]]:
        """Write the panels of the reconstructed cases, by id and :data:`PANELS`."""
        results, trained = self._data.folder / "reconstructions", self._data.session.trained
        ids = self._data.read("reconstructions/reconstructions.csv")["id"].tolist()
        spacing = trained.config.get("spacing_mm", (1.0, 1.0, 1.0))
        cases: dict[str, dict[str, Strips]] = {}
        for name, image in self.read(ids):
            panels = _panels(image, results, self._data.pictured[name].file_name, trained)
            paths = {panel: self.folder / f"{safe_file_name(name)}_{panel}" for panel in panels}
            cases[name] = {key: _write_strips(each, spacing, paths[key]) for key, each in panels.items()}
        return cases


def sample_thumbnails(data: ReportData) -> dict[str, str]:
    """Pictures of the synthetic images of a report, as addresses by id."""
    folder, summary = data.folder / "samples", data.summary
    rows = data.read("samples/generated.csv")
    low, high = map(float, summary["model_range"])
    images = (
        (name, _without_slice_axis(read_image(folder / file, (low, high)), summary["spatial_dims"]))
        for name, file in zip(rows["id"], rows["file"], strict=True)
    )
    made_from = [file_checksum(folder / "generated.parquet")]
    return _thumbnails(data.folder / "media" / "synthetic", made_from, images, data)


def _thumbnails(
    path: Path, made_from: Sequence[Any], images: Iterable[tuple[str, Tensor]], data: ReportData
) -> dict[str, str]:
    """Pictures as addresses by id, kept in a file until something that they are made from changes."""
    file = path.with_name(f"{path.name}-{json_digest(made_from)[:16]}.json")
    if data.run.overwrite or not file.is_file():
        for old in path.parent.glob(f"{path.name}-*.json"):
            old.unlink()
        low, high = map(float, data.summary["model_range"])
        shown_images = ((name, shown(image[None], (low, high), data.is_colour)) for name, image in images)
        pictures = ((name, thumbnail(image, _THUMBNAIL_SIDE, "webp")) for name, image in shown_images)
        write_json(file, {name: data_address(picture, "webp") for name, picture in pictures})
    kept: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return kept


def _write(pixels: Pixels, file: Path) -> Path:
    picture = Image.fromarray(pixels)
    return write_atomic(file, lambda temporary: picture.save(temporary, "webp", quality=88))


# -- reconstructions ---------------------------------------------------------------------------------------------------


def _write_strips(image: Tensor, spacing_mm: Sequence[float], path: Path) -> Strips:
    """Write a picture (3 P, *S): its slices in three planes, or the only "slice" of a 2D image."""
    is_volume = image.ndim == 4
    files, counts, sizes = {}, {}, {}
    for plane in _PLANES if is_volume else ("image",):
        slices = plane_slices(image, plane) if is_volume else image[:, None]
        r, a, s = spacing_mm if is_volume else (1.0, 1.0, 1.0)
        width_mm, height_mm = {"axial": (r, a), "coronal": (r, s), "sagittal": (a, s)}.get(plane, (1.0, 1.0))
        frames = enlarged(side_by_side(slices.movedim(1, 0), below=True), width_mm / height_mm)
        height, width = frames[0].shape[:2]
        frames = frames[:: -(-len(frames) * height // _TALLEST)]
        files[plane] = _write(np.concatenate(frames), path.with_name(f"{path.name}_{plane}.webp"))
        counts[plane], sizes[plane] = len(frames), f"{width}/{height}"
    return Strips(files, counts, sizes)


def enlarged(frames: Pixels, pixel_aspect: float = 1.0) -> list[Pixels]:
    """Frames ``[N, H, W, 3]`` with at least 128 square pixels; ``pixel_aspect`` is width over height of theirs."""
    height, width = frames.shape[1], frames.shape[2] * pixel_aspect
    factor = max(1.0, _LEAST_SIDE / max(height, width))
    size = (round(width * factor), round(height * factor))
    return [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames]


def _panels(image: Tensor, results: Path, file_name: str, trained: TrainedBundle) -> dict[str, Tensor]:
    """The pictures (3 P, *S) of a case."""
    panels = {"input": trained.shown(image[None])[0]}
    low, high = trained.model_range
    for mode in ("z_sem", "x_T"):
        files = (results / mode / f"{file_name}{suffix}" for suffix in (".png", ".nii.gz"))
        decoded = read_image(next(file for file in files if file.is_file()), (low, high))
        decoded = _without_slice_axis(decoded, image.ndim - 1)[None]
        panels[mode] = trained.shown(decoded)[0]
        colours = in_colours(decoded - image, LIMIT * (high - low), is_colour=trained.is_colour)
        panels[f"{mode}_difference"] = colours[0]
    return panels


def _without_slice_axis(image: Tensor, spatial_dims: int) -> Tensor:
    return image[..., 0] if image.ndim > spatial_dims + 1 else image


# -- edits -------------------------------------------------------------------------------------------------------------


def edit_frames(
    edits: Path, folder: Path, file_name: str, strengths: Sequence[float], is_colour: bool
) -> dict[float, tuple[Path, Path]]:
    """Write small pictures of a case that ``edit`` has edited: the image and its difference by strength."""
    images = torch.stack(list(_edited(edits / "images", file_name, strengths)))
    differences = torch.stack(list(_edited(edits / "differences", file_name, strengths)))
    plain = images[list(strengths).index(0)]
    low, high = np.percentile(plain[plain.isfinite()].numpy(), (0.5, 99.5)).tolist()
    high = max(high, low + 1e-6)
    limit = max(float(differences.abs().max()), _LEAST_EDIT_LIMIT * (high - low))
    pixels = side_by_side(shown(images, (low, high), is_colour), below=True)
    colours = side_by_side(in_colours(differences, limit, is_colour=is_colour), below=True)
    return {
        strength: (
            _write(pixels[i], folder / f"{file_name}_{strength:+.2f}.webp"),
            _write(colours[i], folder / f"{file_name}_{strength:+.2f}_difference.webp"),
        )
        for i, strength in enumerate(strengths)
    }


def _edited(folder: Path, file_name: str, strengths: Sequence[float]) -> Iterator[Tensor]:
    """Images (C, H, W) in a square, or three planes of a volume side by side; large ones are scaled down."""
    for strength in strengths:
        files = (folder / f"{file_name}_{strength:+.2f}{suffix}" for suffix in (".png", ".nii.gz"))
        file = next(file for file in files if file.is_file())
        image = read_image(file, (0.0, 255.0))
        image = image[..., 0] if image.ndim == 4 and image.shape[-1] == 1 else image
        sides = min(_EDIT_SIDE, max(image.shape[1:])), _EDIT_PLANE_SIDE
        affine = np.eye(4) if image.ndim == 3 else np.asarray(nib.Nifti1Image.from_filename(file).affine)
        yield fitted(image.numpy(), affine, sides, is_smooth=True).nan_to_num(posinf=0.0)
