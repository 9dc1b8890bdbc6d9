"""Images from nothing: z_sem from the latent DDIM, x_T from noise."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from monai_diffae.apps.results import images_in, log_to_open_run, remove_images, run_once
from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.bundle.checksums import checksum, config_checksum, file_checksum
from monai_diffae.bundle.decoding import inferer_settings
from monai_diffae.bundle.latent_ddim import TrainedLatent, load_latent
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.progress import shown
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents import Direction
from monai_diffae.pictures.mosaic import draw_mosaic
from monai_diffae.transforms.case_images import grid_affine, image_suffix, read_image, write_image

Side = Literal["positive", "negative"]
Format = Literal["png", "nii.gz"]
_SHOWN, _COLUMNS = 32, 8
_CANDIDATES_AT_ONCE = 256
_MOST_REFUSED = 1000  # candidates for one accepted sample


@dataclass(frozen=True)
class SampleResult:
    """What :func:`sample` made.

    Attributes:
        folder: with ``images/``, ``samples.csv``, ``samples.parquet`` and ``samples.png``.
        num_images: how many there are.
        accepted: the share of z_sem that the classifier accepted; 1 without one.
        skipped: whether all were there already.
    """

    folder: Path
    num_images: int
    accepted: float
    skipped: bool = False


def sample(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    num_images: int = 16,
    seed: int = 0,
    direction: str | os.PathLike[str] | None = None,
    side: Side = "positive",
    min_probability: float = 0.5,
    image_format: Format | None = None,
    batch_size: int = 32,
    device: str | None = None,
    overwrite: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> SampleResult:
    """Draw images of nobody: z_sem from the latent DDIM, decoded with fresh x_T.

    ``out/images/00000.png``, ...; ``samples.csv`` has a row an image (``id``, ``file``, ``seed``, ``candidate``, and
    the classifier's ``probability``), ``samples.parquet`` its z_sem in the columns of an embedding, and
    ``samples.png`` shows the first 32. An image is a function of the weights, the seed and its place (to about 1e-6,
    whatever the batch), so an interrupted run goes on, and more images can be added later.

    With ``direction``, a linear classifier fitted to a few labels, only z_sem that it takes for the wanted class are
    decoded: the few-shot conditional sampling of the paper (section 4.5).

    Args:
        bundle: a trained bundle's folder, with a latent DDIM.
        out: the folder for the results.
        num_images: how many.
        seed: of everything random.
        direction: a file of :func:`~monai_diffae.apps.synthesis.fit_direction.fit_direction`, for a label of two classes.
        side: ``positive`` or ``negative``: the class that is wanted.
        min_probability: of the wanted class, for a z_sem to be accepted.
        image_format: ``png`` or ``nii.gz``; None: PNG for 2D images of 1 or 3 channels.
        batch_size: images at once.
        device: where to compute; the GPU if there is one when None.
        overwrite: make them anew although they are there.
        overrides: values for keys of the bundle's config, such as ``{"inferer#num_steps": 50}``.

    Raises:
        ConfigError: no trained bundle, no latent DDIM, a direction of another model, an argument out of range, or
            ``out`` holds samples of other things.
        CohortError: the classifier accepts hardly any z_sem.

    Example:
        >>> sample("bundle", "out", num_images=0)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: num_images: 0 is below 1
    """
    _check(num_images, batch_size, side, min_probability, image_format)
    trained = load_bundle(bundle, device, overrides)
    latent = load_latent(bundle, trained.device)
    chosen = None if direction is None else _classifier(direction, bundle, latent)
    shape = trained.image_shape
    source = _suffix(image_format, shape)
    made_from = {
        "model": checksum(bundle), "config": config_checksum(bundle),
        "latent_model": file_checksum(Path(bundle) / "models" / "latent_model.pt"),
        "latent_config": file_checksum(Path(bundle) / "models" / "latent_config.json"),
        **inferer_settings(trained.inferer), "seed": seed, "image_format": source,
        "direction": None if direction is None else file_checksum(direction), "overrides": dict(overrides or {}),
    }  # fmt: skip
    if direction is not None:
        made_from |= {"side": side, "min_probability": min_probability}
    folder, model_range = Path(out), trained.model_range
    table_file, codes_file, picture = (folder / f"samples.{suffix}" for suffix in ("csv", "parquet", "png"))
    files = [folder / "images" / f"{i:05d}{source}" for i in range(num_images)]

    def make() -> dict[str, Any]:
        if overwrite:
            remove_images(folder / "images")
        z_sem, candidates, probabilities = _accepted_codes(latent, chosen, num_images, seed, side, min_probability)
        todo = [i for i, file in enumerate(files) if not file.exists()]
        starts = range(0, len(todo), batch_size)
        for start in shown(starts, f"decoding {len(todo)} samples"):
            batch = todo[start : start + batch_size]
            x_T = image_noise(trained.x_T_shape, seed, [candidates[i] for i in batch]).to(trained.device)
            images = trained.inferer.decode(z_sem[batch].to(trained.device), x_T, trained.network)
            for i, image in zip(batch, images, strict=True):
                write_image(files[i].with_name(f"{i:05d}"), image, model_range, source, grid_affine(trained.config))
        names = [f"{i:05d}" for i in range(num_images)]
        table = pd.DataFrame({"id": names, "file": [f"images/{f.name}" for f in files], "seed": seed})
        table["candidate"] = candidates
        if chosen is not None:
            table["probability"] = probabilities
        z_columns = {f"z_{i:03d}": z_sem[:, i].numpy() for i in range(z_sem.shape[1])}
        codes = pd.DataFrame({"id": names, **z_columns})
        write_atomic(codes_file, lambda path: codes.to_parquet(path, index=False))
        write_atomic(table_file, lambda path: table.to_csv(path, index=False, lineterminator="\n"))
        rows = _rows_of_picture(files[:_SHOWN], model_range)
        write_atomic(picture, lambda path: draw_mosaic(rows, path, model_range))
        numbers = {"num_images": num_images, "accepted": num_images / (candidates[-1] + 1)}
        log_to_open_run(numbers, [picture], "samples")
        return numbers

    # a run goes on with the images that are there, so those of another one, even if it was killed, are refused
    results = [table_file, codes_file, picture, *files, *images_in(folder / "images")]
    numbers, skipped = run_once(folder / "samples.json", results, made_from, make, overwrite=overwrite)
    return SampleResult(folder, numbers["num_images"], float(numbers["accepted"]), skipped)


def _suffix(image_format: Format | None, shape: tuple[int, ...]) -> str:
    possible = image_suffix(shape)
    if image_format == "png" and possible != ".png":
        raise ConfigError(f"image_format: PNG cannot hold images of the size {list(shape)}; choose nii.gz")
    return possible if image_format is None else f".{image_format}"


def _classifier(direction: str | os.PathLike[str], bundle: str | os.PathLike[str], latent: TrainedLatent) -> Direction:
    chosen = read_direction(direction)
    chosen.check_fits(checksum(bundle), latent.network.z_channels)
    if chosen.kind != "binary":
        raise ConfigError(f"direction: '{chosen.target}' is a number, not two classes; fit one to a label of two")
    return chosen


def _accepted_codes(
    latent: TrainedLatent, chosen: Direction | None, count: int, seed: int, side: Side, min_probability: float
) -> tuple[Tensor, list[int], list[float]]:
    """The first ``count`` z_sem (N, D) that are accepted, the place of each among the candidates, its probability."""
    kept: list[Tensor] = []
    places: list[int] = []
    probabilities: list[float] = []
    for start, z_sem in _candidates(latent, seed, count if chosen is None else _CANDIDATES_AT_ONCE):
        probability = np.ones(len(z_sem)) if chosen is None else chosen.predict(z_sem.numpy())
        probability = 1 - probability if chosen is not None and side == "negative" else probability
        accepted = np.flatnonzero(probability >= min_probability)[: count - len(places)]
        kept.append(z_sem[accepted])
        places += [start + int(i) for i in accepted]
        probabilities += [float(probability[i]) for i in accepted]
        if len(places) == count:
            return torch.cat(kept), places, probabilities
        if start + len(z_sem) >= _MOST_REFUSED * count:
            raise CohortError(
                f"the classifier accepted {len(places)} of {start + len(z_sem)} z_sem, {count} were wanted; "
                "lower min_probability"
            )
    raise AssertionError("candidates do not end")


def _candidates(latent: TrainedLatent, seed: int, at_once: int) -> Iterator[tuple[int, Tensor]]:
    start = 0
    while True:
        yield start, latent.inferer.sample(latent.network, at_once, seed=seed, start=start).cpu()
        start += at_once


def _rows_of_picture(files: list[Path], model_range: tuple[float, float]) -> dict[str, Tensor]:
    images = [read_image(file, model_range) for file in files]
    starts = range(0, len(images), _COLUMNS)
    return {f"{s} to {min(s + _COLUMNS, len(images)) - 1}": torch.stack(images[s : s + _COLUMNS]) for s in starts}


def _check(num_images: int, batch_size: int, side: str, min_probability: float, image_format: str | None) -> None:
    for name, value in {"num_images": num_images, "batch_size": batch_size}.items():
        if value < 1:
            raise ConfigError(f"{name}: {value} is below 1")
    if side not in get_args(Side):
        raise ConfigError(f"side: {side!r} is not one of {', '.join(get_args(Side))}")
    if not 0 <= min_probability < 1:
        raise ConfigError(f"min_probability: {min_probability} is not from 0 to below 1")
    if image_format not in (None, *get_args(Format)):
        raise ConfigError(f"image_format: {image_format!r} is not one of {', '.join(get_args(Format))}")
