"""The work of ``reconstruct``: batches of images encoded, decoded, measured and written."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from torch import Tensor, nn

from monai_diffae.apps.session import ReadCases, Session
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case
from monai_diffae.errors import counted
from monai_diffae.inferers import ReconstructionMode, Reconstructor, encode_exactly
from monai_diffae.metrics.codes import noise_statistics
from monai_diffae.metrics.image_quality import reconstruction_errors
from monai_diffae.pictures import draw_mosaic
from monai_diffae.transforms import ToRASd, WriteReconstructiond
from monai_diffae.transforms.case_images import warn_without_dicom
from monai_diffae.transforms.native import NativeSpace
from monai_diffae.transforms.reconstructions import Grid

logger = logging.getLogger(__name__)

MODES: tuple[ReconstructionMode, ...] = ("z_sem", "x_T")
_IN_MOSAIC = 8
_ROWS = {"scan": "scan, with\nfield of view", "input": "input", "z_sem": "z_sem only", "x_T": "inverted x_T"}
_FINE = 128  # pixels along the longest side of a whole scan in the mosaic
_LEAST_SHARE = 0.5  # share of a scan's voxels in the field of view, below which its image is mostly empty


@dataclass
class Reconstruction:
    """Reconstructs the cases of a session.

    Attributes:
        session: the bundle and the cohort.
        folder: the folder for the images, which get one folder per mode in it.
        modes: ``x_T``, ``z_sem`` or both.
        grid: ``native`` or ``model``: where the images lie.
        dicom: write DICOM cases also as series.
        seed: random seed of the noise in mode ``z_sem``.
    """

    session: Session
    folder: Path
    modes: Sequence[ReconstructionMode]
    grid: Grid
    dicom: bool
    seed: int
    _mosaic: dict[str, list[Tensor]] = field(default_factory=dict)
    _z_sem: list[NDArray[np.float32]] = field(default_factory=list)

    def run(self, read: ReadCases, table_file: Path, mosaic: Path) -> dict[str, float]:
        """Write the images of all cases, their table and the mosaic.

        Returns:
            The mean of each numeric column of the table.

        Raises:
            ConfigError: the preprocessing cannot be inverted, but the images should lie in the scan's own space.
        """
        trained = self.session.trained
        writer = WriteReconstructiond(
            self.modes, self.folder, read.cases, trained.preprocessing, grid=self.grid,
            model_range=trained.model_range, affine=trained.grid_affine, dicom=self.dicom, overwrite=True,
        )  # fmt: skip
        if self.dicom:
            warn_without_dicom(read.cases)
        rows: list[dict[str, Any]] = []
        for cases, images, encoder_images in read.batches(
            self.session.run.batch_size, f"reconstructing {counted(len(read.cases), 'case')}"
        ):
            rows += self._batch(cases, images, encoder_images, writer, in_mosaic=max(_IN_MOSAIC - len(rows), 0))
        table = pd.DataFrame(rows)
        if "field_share" in table and table["field_share"][:_IN_MOSAIC].min() == 1:
            del self._mosaic["scan"]  # the input shows the same
        pictures = {label: torch.cat(self._mosaic[name]) for name, label in _ROWS.items() if name in self._mosaic}
        write_atomic(mosaic, lambda path: draw_mosaic(pictures, path, trained.model_range))
        write_atomic(table_file, lambda path: table.to_csv(path, index=False, lineterminator="\n"))
        means = {str(name): float(value) for name, value in table.drop(columns="id").mean().items()}
        self.session.warn_if_unlike(np.concatenate(self._z_sem))
        _warn_of_structure(means)
        if "field_share" in table:
            _warn_of_small_field(table["field_share"])
        return means

    @torch.no_grad()
    def _batch(
        self, cases: list[Case], images: Tensor, encoder_images: Tensor, writer: WriteReconstructiond, in_mosaic: int
    ) -> list[dict[str, Any]]:
        """Decode, write and measure one batch; keep its first images for the mosaic."""
        trained = self.session.trained
        images, encoder_images = images.to(trained.device), encoder_images.to(trained.device)
        z_sem = encode_exactly(encoder_images, trained.inferer, trained.network)
        self._z_sem.append(z_sem.cpu().numpy())
        decoded: dict[str, Tensor] = {"input": images}
        columns: dict[str, Tensor] = {}
        for mode in MODES:
            count = len(images) if mode in self.modes else min(in_mosaic, len(images))
            decoded[mode], x_T = self._decode(mode, cases[:count], images[:count], z_sem[:count])
            if mode in self.modes:
                columns |= self._errors(images, decoded[mode], mode)
            if mode == "x_T" and mode in self.modes:
                columns |= {f"x_T_{statistic}": values for statistic, values in noise_statistics(x_T).items()}
        first_stage = trained.inferer.first_stage
        if first_stage is not None:  # the error of the first stage alone, without the diffusion model
            columns |= self._errors(images, first_stage.decode(first_stage.encode(images)), "first_stage")
        written = [
            writer({"id": case.id, **{mode: decoded[mode][i] for mode in self.modes}}) for i, case in enumerate(cases)
        ]
        if self.grid == "native":
            columns["field_share"] = torch.tensor([item["field_share"] for item in written])
            if in_mosaic:
                spaces = (NativeSpace(trained.preprocessing, case.item()) for case in cases[:in_mosaic])
                decoded["scan"] = torch.stack([_whole_scan(space, trained.model_range[1]) for space in spaces])
        for name, stack in decoded.items():
            self._mosaic.setdefault(name, []).append(stack[:in_mosaic].cpu())
        values = {name: column.cpu() for name, column in columns.items()}
        return [{"id": case.id, **{key: float(v[i]) for key, v in values.items()}} for i, case in enumerate(cases)]

    def _decode(
        self, mode: ReconstructionMode, cases: Sequence[Case], images: Tensor, z_sem: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decode images (B, C, *S) in a mode; also return the x_T that they were decoded with."""
        if len(images) == 0:
            return images, images
        reconstructor = Reconstructor(self.session.trained.inferer, mode, self.seed)
        return reconstructor.decode(images, self.session.trained.network, z_sem, [case.id for case in cases])

    def _errors(self, images: Tensor, decoded: Tensor, name: str) -> dict[str, Tensor]:
        errors = reconstruction_errors(images, decoded, self.session.trained.model_range)
        return {f"{metric}_{name}": values for metric, values in errors.items()}


def _warn_of_structure(means: Mapping[str, float]) -> None:
    std, correlation = means.get("x_T_std", 1.0), means.get("x_T_neighbor_correlation", 0.0)
    if not (abs(std - 1) <= 0.1 and abs(correlation) <= 0.2):  # NaN too
        logger.warning(
            "x_T is not Gaussian noise (standard deviation %.2f instead of 1, neighbor correlation %.2f instead of 0) "
            "and still encodes image structure, so edits of z_sem will decode poorly: the scans may be unlike those of "
            "the training, the steps too few, or the training too short",
            std, correlation,
        )  # fmt: skip


def _warn_of_small_field(share: pd.Series[float]) -> None:
    if num_small := int((share < _LEAST_SHARE).sum()):
        logger.warning(
            "%d of %d scans are larger than the model's field of view, which holds %.1f %% of their voxels "
            "(median); their images are empty elsewhere. Crop the scans to what the model was trained on",
            num_small, len(share), 100 * float(share[share < _LEAST_SHARE].median()),
        )  # fmt: skip


def _whole_scan(space: NativeSpace, high: float) -> Tensor:
    """The whole scan, finer than the model's image but with its proportions, and the outline of the field of view."""
    affine = torch.from_numpy(space.scan.affine)
    arrays = {"scan": space.to_model_range(space.scan.array), "field": space.field[None].astype(np.float32)}
    images: dict[Any, Any] = {
        name: MetaTensor(torch.from_numpy(np.ascontiguousarray(a)), affine=affine) for name, a in arrays.items()
    }
    spacing = torch.tensor(space.scan.spacing_mm)
    if space.scan.spatial_dims == 3:
        images = ToRASd(("scan", "field"))(images)
        spacing = torch.as_tensor(images["scan"].pixdim)
    scan, field = (torch.as_tensor(images[name]) for name in arrays)
    shape = torch.tensor(space.image.shape[1:])
    target, extent = shape * math.ceil(_FINE / int(shape.max())), torch.tensor(scan.shape[1:]) * spacing
    size = (extent * (target / extent).min()).round().clamp(min=1).int().tolist()
    small = nn.functional.interpolate(scan[None], size, mode="area")[0]
    inside = nn.functional.interpolate(field[None], size)[0, 0].numpy() > 0
    small[:, torch.from_numpy(inside & ~binary_erosion(inside))] = high
    return torch.as_tensor(ResizeWithPadOrCrop(target.tolist(), value=float(space.image.min()))(small))
