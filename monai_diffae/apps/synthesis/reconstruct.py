"""The command ``reconstruct``: encode and decode the cases of a cohort."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from monai_diffae import inferers, metrics, pictures, transforms
from monai_diffae.apps.command import command
from monai_diffae.apps.record import remove_images, run_once
from monai_diffae.apps.result import Result, failed_cases
from monai_diffae.apps.settings import Choice, Decoding, Reading, Run, Seed
from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.data.cases import Case
from monai_diffae.errors import counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import torch

    from monai_diffae.apps import session as sessions

logger = logging.getLogger(__name__)

Mode = Literal["x_T", "z_sem", "both"]
Grid = Literal["native", "model"]

MODES: tuple[inferers.ReconstructionMode, ...] = ("z_sem", "x_T")
_IN_MOSAIC = 8
_ROWS = {"scan": "scan, with\nfield of view", "input": "input", "z_sem": "z_sem only", "x_T": "inverted x_T"}
_FINE = 128  # pixels along the longest side of a whole scan in the mosaic
_LEAST_SHARE = 0.5  # share of a scan's voxels in the field of view, below which its image is mostly empty


@command
def reconstruct(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    mode: Mode = "x_T",
    grid: Grid = "native",
    dicom: bool = False,
    seed: Seed = 0,
    choice: Choice = Choice(),
    decoding: Decoding = Decoding(),
    reading: Reading = Reading(),
    run: Run = Run(),
) -> Result:
    """Encode and decode cases: images in the scan's own space, a table of errors, a mosaic.

    ``out/<mode>/<id>`` are images in the scan's own space (shape, affine, units and, for NIfTI, data type), with the
    model's resolution, and the scan's lowest value outside the model's field of view. PNG and JPEG become PNG, all
    others NIfTI. ``reconstructions.csv`` has one row per case, measured in the model's grid and range: ``id``; ``mse``,
    ``psnr`` and ``ssim`` of each mode; the mean, standard deviation and neighbor correlation of the inverted ``x_T``
    (0, 1 and 0 for perfect noise); and ``field_share``, the share of the scan's voxels in the field of view; in latent
    mode also the errors of the first stage alone. ``mosaic.png`` shows the first 8 cases: the whole scan, if it is
    larger than the field of view; input; decoded from z_sem alone; decoded from both codes.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        mode: ``x_T`` decodes with the inverted x_T of the case (near-exact), ``z_sem`` with Gaussian noise, ``both``
            does both.
        grid: ``native`` writes images in the scan's own space; ``model`` in the model's grid and range (float32
            NIfTI or 8-bit PNG), which also works if the preprocessing cannot be inverted.
        dicom: Also write DICOM cases as new series of the same study, ``out/<mode>/dicom/<id>``. They contain the
            patient's name, as their sources do.
        seed: Random seed of the noise in mode ``z_sem``, a function of the seed and the case's id.

    Returns:
        The folder; ``means``, the mean of each numeric column of the table, such as ``mse_x_T``; ``num_cases``; and
        ``num_failed``, listed in ``failures.csv``.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained, or ``out`` holds results of other inputs.
        CohortError: there is no usable case.
    """
    session = sessions.Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run)
    cases = session.choose(choice)
    made_from = session.made_from(cases, mode=mode, grid=grid, dicom=dicom, seed=seed)
    modes = MODES if mode == "both" else (mode,)
    results = [out / name for name in ("reconstructions.csv", "mosaic.png", *modes)]

    def make() -> Mapping[str, Any]:
        read = session.read(cases, out, named=bool(choice.cases), dicom=dicom)
        for name in MODES:
            remove_images(out / name)
        means = _Reconstruction(session, out, modes, grid, dicom, seed).run(read)
        return {"means": means, "num_cases": len(read.cases), "num_failed": len(read.failures)}

    figures, skipped = run_once("reconstruct", out, results, made_from, make, overwrite=run.overwrite)
    notes = [f"{name} {value:.6g}" for name, value in figures["means"].items()]
    return Result(out, figures, notes, failed_cases(figures["num_failed"], figures["num_cases"]), skipped=skipped)


@dataclass
class _Reconstruction:
    """Reconstructs the cases of a session."""

    session: sessions.Session
    folder: Path
    modes: Sequence[inferers.ReconstructionMode]
    grid: Grid
    dicom: bool
    seed: int
    _mosaic: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    _z_sem: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def run(self, read: sessions.ReadCases) -> dict[str, float]:
        """Write the images of all cases, their table and the mosaic; return the means of the table."""
        trained = self.session.trained
        writer = transforms.WriteReconstructiond(
            self.modes,
            self.folder,
            read.cases,
            trained.preprocessing,
            grid=self.grid,
            model_range=trained.model_range,
            affine=trained.grid_affine,
            dicom=self.dicom,
            overwrite=True,
        )
        rows: list[dict[str, Any]] = []
        text = f"reconstructing {counted(len(read.cases), 'case')}"
        with torch.no_grad():
            for batch in read.batches(self.session.run.batch_size, text):
                rows += self._batch(batch, writer, in_mosaic=max(_IN_MOSAIC - len(rows), 0))
        table = pd.DataFrame(rows)
        if "field_share" in table and table["field_share"][:_IN_MOSAIC].min() == 1:
            del self._mosaic["scan"]  # the input shows the same
        rows_of_mosaic = {
            label: trained.shown(torch.cat(self._mosaic[name])) for name, label in _ROWS.items() if name in self._mosaic
        }
        write_atomic(self.folder / "mosaic.png", lambda path: pictures.draw_mosaic(rows_of_mosaic, path))
        write_csv(self.folder / "reconstructions.csv", table)
        means = {str(name): float(value) for name, value in table.drop(columns="id").mean().items()}
        self.session.warn_if_unlike(np.concatenate(self._z_sem))
        _warn_of_structure(means)
        if "field_share" in table:
            _warn_of_small_field(table["field_share"])
        return means

    def _batch(
        self, batch: tuple[list[Case], torch.Tensor, torch.Tensor], writer: Callable[[Any], Any], in_mosaic: int
    ) -> list[dict[str, Any]]:
        """Decode, write and measure one batch; keep its first images for the mosaic."""
        trained, cases = self.session.trained, batch[0]
        images, encoder_images = (stack.to(trained.device) for stack in batch[1:])
        z_sem = inferers.encode_exactly(encoder_images, trained.network, trained.inferer)
        self._z_sem.append(z_sem.cpu().numpy())
        decoded: dict[str, torch.Tensor] = {"input": images}
        columns: dict[str, torch.Tensor] = {}
        for mode in MODES:
            count = len(images) if mode in self.modes else min(in_mosaic, len(images))
            decoded[mode], x_T = self._decode(mode, cases[:count], images[:count], z_sem[:count])
            if mode in self.modes:
                columns |= self._errors(images, decoded[mode], mode)
            if mode == "x_T" and mode in self.modes:
                columns |= {f"x_T_{statistic}": values for statistic, values in metrics.noise_statistics(x_T).items()}
        first_stage = trained.inferer.first_stage
        if first_stage is not None:  # the error of the first stage alone, without the diffusion model
            columns |= self._errors(images, first_stage.decode(first_stage.encode(images)), "first_stage")
        written = [
            writer({"id": case.id, **{mode: decoded[mode][i] for mode in self.modes}}) for i, case in enumerate(cases)
        ]
        if self.grid == "native":
            columns["field_share"] = torch.tensor([item["field_share"] for item in written])
            if in_mosaic:
                spaces = (transforms.NativeSpace(trained.preprocessing, case.item()) for case in cases[:in_mosaic])
                decoded["scan"] = torch.stack([_whole_scan(space, trained.model_range[1]) for space in spaces])
        for name, stack in decoded.items():
            self._mosaic.setdefault(name, []).append(stack[:in_mosaic].cpu())
        values = {name: column.cpu() for name, column in columns.items()}
        return [{"id": case.id, **{key: float(v[i]) for key, v in values.items()}} for i, case in enumerate(cases)]

    def _decode(
        self, mode: inferers.ReconstructionMode, cases: Sequence[Case], images: torch.Tensor, z_sem: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode images (B, C, *S) in a mode; also return the x_T that they were decoded with."""
        if len(images) == 0:
            return images, images
        reconstructor = inferers.Reconstructor(self.session.trained.inferer, mode, self.seed)
        return reconstructor.decode(images, self.session.trained.network, z_sem, [case.id for case in cases])

    def _errors(self, images: torch.Tensor, decoded: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
        errors = metrics.reconstruction_errors(images, decoded, self.session.trained.model_range)
        return {f"{metric}_{name}": values for metric, values in errors.items()}


def _warn_of_structure(means: Mapping[str, float]) -> None:
    std, correlation = means.get("x_T_std", 1.0), means.get("x_T_neighbor_correlation", 0.0)
    if not (abs(std - 1) <= 0.1 and abs(correlation) <= 0.2):  # NaN too
        logger.warning(
            "x_T is not Gaussian noise (standard deviation %.2f instead of 1, neighbor correlation %.2f instead of 0) "
            "and still encodes image structure, so edits of z_sem will decode poorly: the scans may be unlike those of "
            "the training, the steps too few, or the training too short",
            std,
            correlation,
        )


def _warn_of_small_field(share: pd.Series[float]) -> None:
    if num_small := int((share < _LEAST_SHARE).sum()):
        logger.warning(
            "%d of %d scans are larger than the model's field of view, which holds %.1f %% of their voxels "
            "(median); their images are empty elsewhere. Crop the scans to what the model was trained on",
            num_small,
            len(share),
            100 * float(share[share < _LEAST_SHARE].median()),
        )


def _whole_scan(space: transforms.NativeSpace, high: float) -> torch.Tensor:
    """The whole scan, finer than the model's image but with its proportions, and the outline of the field of view."""
    from monai.data import MetaTensor
    from monai.transforms import ResizeWithPadOrCrop
    from scipy.ndimage import binary_erosion

    affine = torch.from_numpy(space.scan.affine)
    arrays = {"scan": space.to_model_range(space.scan.array), "field": space.field[None].astype(np.float32)}
    images: dict[Any, Any] = {
        name: MetaTensor(torch.from_numpy(np.ascontiguousarray(a)), affine=affine) for name, a in arrays.items()
    }
    spacing = torch.tensor(space.scan.spacing_mm)
    if space.scan.spatial_dims == 3:
        images = transforms.ToRASd(("scan", "field"))(images)
        spacing = torch.as_tensor(images["scan"].pixdim)
    scan, field = (torch.as_tensor(images[name]) for name in arrays)
    shape = torch.tensor(space.image.shape[1:])
    target, extent = shape * math.ceil(_FINE / int(shape.max())), torch.tensor(scan.shape[1:]) * spacing
    size = (extent * (target / extent).min()).round().clamp(min=1).int().tolist()
    small = torch.nn.functional.interpolate(scan[None], size, mode="area")[0]
    inside = torch.nn.functional.interpolate(field[None], size)[0, 0].numpy() > 0
    small[:, torch.from_numpy(inside & ~binary_erosion(inside))] = high
    return torch.as_tensor(ResizeWithPadOrCrop(target.tolist(), value=float(space.image.min()))(small))
