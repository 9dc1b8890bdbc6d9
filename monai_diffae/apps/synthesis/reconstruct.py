"""A cohort encoded and decoded again: images, their errors, and a picture of the first ones."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from monai_diffae.apps.results import remove_images, run_once
from monai_diffae.apps.session import cases_of, check_choice, checksum_of_cases, read_cases, read_split_cohort
from monai_diffae.apps.synthesis.images import grid_affine, warn_without_dicom, write_image, write_in_space_of
from monai_diffae.bundle.checksums import checksum
from monai_diffae.bundle.decoding import inferer_overrides, inferer_settings
from monai_diffae.bundle.loading import TrainedBundle, open_bundle
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import ConfigError
from monai_diffae.inferers.exact_encoding import encode_exactly
from monai_diffae.metrics.noise import noise_statistics
from monai_diffae.metrics.reconstruction import reconstruction_errors
from monai_diffae.pictures.mosaic import draw_mosaic
from monai_diffae.transforms import NativeSpace, check_invertible

logger = logging.getLogger(__name__)

Mode = Literal["x_T", "z_sem", "both"]
Grid = Literal["native", "model"]
_IN_MOSAIC = 8
_LABELS = {"z_sem": "z_sem only", "x_T": "inverted x_T"}


@dataclass(frozen=True)
class ReconstructResult:
    """What :func:`reconstruct` made.

    Attributes:
        folder: with the images in a folder for each mode, ``reconstructions.csv`` and ``mosaic.png``.
        means: the mean of each of the table's numbers, such as ``mse_x_T``.
        num_cases: the table's rows.
        num_failed: cases that could not be used, listed in ``failures.csv``.
        skipped: whether all was there already.
    """

    folder: Path
    means: dict[str, float]
    num_cases: int
    num_failed: int
    skipped: bool = False


def reconstruct(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    mode: Mode = "x_T",
    steps: int | None = None,
    invert_steps: int | None = None,
    solver: str | None = None,
    inversion: str | None = None,
    spacing: str | None = None,
    grid: Grid = "native",
    dicom: bool = False,
    limit: int | None = None,
    split: str | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    device: str | torch.device | None = None,
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> ReconstructResult:
    """Reconstruct the cases of a cohort.

    ``out/<mode>/<id>`` lie in the scan's own space: its shape, affine, units and, for NIfTI, type; with the resolution
    of the model, and the scan's own values where the model's field does not reach. PNG for cases that are PNG or JPEG,
    NIfTI for all others. ``reconstructions.csv`` has a row a case, measured in the model's grid and range: ``id``,
    ``mse``, ``psnr`` and ``ssim`` of each mode, and the mean, standard deviation and neighbour correlation of the
    inverted ``x_T`` (0, 1 and 0 for perfect noise); of a model on a first stage's latents also ``mse``, ``psnr`` and
    ``ssim`` of the first stage alone. ``mosaic.png`` shows the first 8, volumes in three planes: input,
    z_sem alone, inverted x_T.

    How the model decodes and inverts is what the bundle's config says, where it is not said here; see
    :class:`~monai_diffae.inferers.DiffusionAutoencoderInferer`.

    Args:
        bundle: a trained bundle's folder.
        cohort: a folder, table, datalist or scan.
        out: the folder for the results.
        mode: ``x_T``: with the case's own x_T; ``z_sem``: from z_sem alone; ``both``.
        steps: network evaluations for decoding.
        invert_steps: network evaluations for inversion; when None those that go with ``steps``, where that is given.
        solver: ``adams``, ``ddim``, ``euler``, ``heun``, ``dpmpp_2m`` or ``unipc``.
        inversion: ``implicit``, which undoes the solver's steps, or ``ddim``: first order, with spacing ``leading``
            the paper's.
        spacing: the levels visited: ``logsnr``, ``leading`` (the paper's), ``trailing`` or ``linspace``.
        grid: ``native``: as above; ``model``: the images as the model makes them, in its grid and ``model_range``
            (NIfTI float32 or 8-bit PNG). A preprocessing that cannot be undone needs ``model``.
        dicom: write cases that are DICOM also as new series of the same study, ``out/<mode>/dicom/<id>``; they hold the
            patient's name as their sources do. See :func:`~monai_diffae.data.dicom_series.write_series`.
        limit: only so many cases, the first ones.
        split: only the cases of ``train``, ``val`` or ``test``.
        seed: of the noise in mode ``z_sem``, which is a function of the seed and the case's id.
        batch_size: images at once.
        workers: processes that read and preprocess.
        device: where to compute; the GPU if there is one when None.
        columns: what the cohort's table calls our words.
        overwrite: make it anew although it is there.
        overrides: values for keys of the bundle's config, such as ``{"slice_step": 1}``.

    Raises:
        ConfigError: an argument out of range, no trained bundle, or ``out`` holds another model's reconstructions.
        CohortError: no usable case.

    Example:
        >>> reconstruct("bundle", "cohort.csv", "out", mode="z")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: mode: 'z' is not one of x_T, z_sem, both
    """
    folder = Path(out)
    _check(mode, steps, invert_steps, limit, batch_size, split)
    _check_grid(grid, dicom)
    made_from: dict[str, Any] = {"model": checksum(bundle)}
    said = inferer_overrides(overrides, steps, invert_steps, solver=solver, inversion=inversion, spacing=spacing)
    trained = open_bundle(bundle, device, said)
    settings = inferer_settings(trained.inferer)
    whole, encoder_key = read_split_cohort(bundle, trained, cohort, columns, overrides)
    chosen = cases_of(whole, split, limit)
    made_from |= {
        "cohort": whole.fingerprint, "cases": checksum_of_cases(chosen), "mode": mode, **settings,
        "grid": grid, "dicom": dicom, "seed": seed, "overrides": dict(overrides or {}),
    }  # fmt: skip
    table_file, mosaic = folder / "reconstructions.csv", folder / "mosaic.png"
    modes = ("x_T", "z_sem") if mode == "both" else (mode,)

    def make() -> dict[str, Any]:
        cases = read_cases(whole, trained, folder, encoder_key=encoder_key, only=chosen, workers=workers)
        if grid == "native":
            _check_can_go_back(trained)
        if dicom:
            warn_without_dicom(cases.cases)
        for name in _LABELS:
            remove_images(folder / name)
        rows: list[dict[str, Any]] = []
        shown_images: dict[str, list[Tensor]] = {}
        for batch, images, seen in cases.batches(batch_size, f"reconstructing {len(cases.cases)} cases"):
            left = max(_IN_MOSAIC - len(rows), 0)
            new_rows, pictures = _reconstruct_batch(trained, batch, images, seen, mode, seed, left)
            for i, case in enumerate(batch):
                made = {name: pictures[name][i] for name in modes}
                _write(folder, case, made, trained, grid, dicom)
            for name, stack in pictures.items():
                shown_images.setdefault(name, []).append(stack[:left])
            rows += new_rows
        rows_of_mosaic = {label: torch.cat(shown_images[key]) for key, label in {"input": "input", **_LABELS}.items()}
        write_atomic(mosaic, lambda path: draw_mosaic(rows_of_mosaic, path, trained.model_range))
        table = pd.DataFrame(rows)
        write_atomic(table_file, lambda path: table.to_csv(path, index=False, lineterminator="\n"))
        means = {str(name): float(value) for name, value in table.drop(columns="id").mean().items()}
        _warn_of_structure(means)
        return {"means": means, "num_cases": len(table), "num_failed": len(cases.failures)}

    results = [table_file, mosaic, *(folder / name for name in modes)]
    numbers, skipped = run_once(folder / "reconstructions.json", results, made_from, make, overwrite=overwrite)
    return ReconstructResult(folder, numbers["means"], numbers["num_cases"], numbers["num_failed"], skipped)


def _write(
    folder: Path, case: Case, images: Mapping[str, Tensor], trained: TrainedBundle, grid: Grid, dicom: bool
) -> None:
    """One case's images (C, *S) of each mode."""
    if grid == "model":
        for name, image in images.items():
            write_image(folder / name / case.id, image, trained.model_range, case.file, grid_affine(trained.config))
        return
    native = NativeSpace(trained.preprocessing, case.item())
    for name, image in images.items():
        description = f"monai_diffae reconstruction from {name}" if dicom else None
        write_in_space_of(folder / name, case.id, native, native.back(image), case, description)


@torch.no_grad()
def _reconstruct_batch(
    trained: TrainedBundle, batch: list[Case], images: Tensor, seen: Tensor, mode: Mode, seed: int, in_mosaic: int
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The table's rows, and the images (B, C, *S) of each mode; of a mode for the mosaic only, the first ones."""
    inferer, network = trained.inferer, trained.network
    images, seen = images.to(trained.device), seen.to(trained.device)
    z_sem = encode_exactly(seen, inferer, network)
    pictures = {"input": images.cpu()}
    columns: dict[str, Tensor] = {}
    for name in ("z_sem", "x_T"):
        wanted = mode in (name, "both")
        count = len(images) if wanted else min(in_mosaic, len(images))
        if count == 0:
            pictures[name] = images[:0].cpu()
            continue
        if name == "x_T":
            x_T, made = inferer.round_trip(images[:count], network, z_sem[:count])
        else:
            x_T = image_noise(trained.x_T_shape, seed, [seed_of(case.id) for case in batch[:count]])
            made = inferer.decode(z_sem[:count], x_T.to(trained.device), network)
        pictures[name] = made.cpu()
        if wanted:
            errors = reconstruction_errors(images, made, trained.model_range)
            columns |= {f"{metric}_{name}": values.cpu() for metric, values in errors.items()}
            if name == "x_T":
                columns |= {f"x_T_{statistic}": v.cpu() for statistic, v in noise_statistics(x_T).items()}
    if inferer.first_stage is not None:  # what is lost before the diffusion model sees anything
        made = inferer.first_stage.decode(inferer.first_stage.encode(images))
        errors = reconstruction_errors(images, made, trained.model_range)
        columns |= {f"{metric}_first_stage": values.cpu() for metric, values in errors.items()}
    rows = [{"id": case.id, **{key: float(v[i]) for key, v in columns.items()}} for i, case in enumerate(batch)]
    return rows, pictures


def _warn_of_structure(means: Mapping[str, float]) -> None:
    std, correlation = means.get("x_T_std", 1.0), means.get("x_T_neighbour_correlation", 0.0)
    if not (abs(std - 1) <= 0.1 and abs(correlation) <= 0.2):  # NaN too
        logger.warning(
            "x_T is no noise (standard deviation %.2f, not 1; neighbours correlate by %.2f, not 0) but still holds the "
            "images, so with an edited z_sem it decodes badly; train for longer, or invert with more steps",
            std, correlation,
        )  # fmt: skip


def _check_can_go_back(trained: TrainedBundle) -> None:
    try:
        check_invertible(trained.preprocessing)
    except ConfigError as error:
        raise ConfigError(f"{error}; or say --grid model") from error


def _check_grid(grid: str, dicom: bool) -> None:
    if grid not in get_args(Grid):
        raise ConfigError(f"grid: {grid!r} is not one of {', '.join(get_args(Grid))}")
    if dicom and grid == "model":
        raise ConfigError("dicom: a series lies in its scan's own space; leave out --grid model")


def _check(
    mode: str, steps: int | None, invert_steps: int | None, limit: int | None, batch_size: int, split: str | None
) -> None:
    if mode not in get_args(Mode):
        raise ConfigError(f"mode: {mode!r} is not one of {', '.join(get_args(Mode))}")
    check_choice(split, limit)
    numbers = {"steps": steps, "invert_steps": invert_steps, "batch_size": batch_size}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name}: {value} is below 1")
