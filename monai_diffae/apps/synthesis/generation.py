"""The work of ``generate``: z_sem sampled from the latent DDIM, filtered by a classifier, decoded and written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.apps.synthesis.direction_files import read_direction
from monai_diffae.apps.synthesis.generate import Format, Side
from monai_diffae.bundle import TrainedBundle, TrainedLatent
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.progress import track
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import CohortError, ConfigError, counted
from monai_diffae.latents import Direction
from monai_diffae.pictures import draw_mosaic
from monai_diffae.transforms.case_images import image_suffix, read_image, write_image

_IN_PICTURE, _COLUMNS = 32, 8
_CANDIDATES_AT_ONCE = 256
_MOST_CANDIDATES = 1000  # per requested image


@dataclass(frozen=True)
class ClassFilter:
    """A linear classifier that selects the z_sem of one class.

    Attributes:
        direction: the classifier, for a label with two classes.
        side: ``positive`` or ``negative``: the requested class.
        min_probability: the smallest accepted probability of that class.
    """

    direction: Direction
    side: Side
    min_probability: float

    @classmethod
    def read(cls, file: Path, trained: TrainedBundle, side: Side, min_probability: float) -> ClassFilter:
        """Read the classifier from a direction file.

        Raises:
            ConfigError: the direction belongs to another model, or its label is a number.
        """
        direction = read_direction(file)
        direction.check_fits(trained.sha256, trained.z_channels, trained.preprocessing_sha256)
        if direction.kind != "binary":
            raise ConfigError(
                f"direction: '{direction.target}' is a number; use a direction for a label with two classes"
            )
        direction.warn_if_chance()
        return cls(direction, side, min_probability)

    def probabilities(self, z_sem: Tensor) -> NDArray[np.float64]:
        """Return the probability of the requested class for each z_sem (N, D): ``[N]``."""
        positive = self.direction.predict(z_sem.numpy())
        return positive if self.side == "positive" else 1 - positive


@dataclass(frozen=True)
class Codes:
    """Accepted z_sem.

    Attributes:
        z_sem: (N, D).
        candidates: the number of each among all sampled z_sem, ascending.
        probabilities: the probability of the requested class for each; None without a classifier.
    """

    z_sem: Tensor
    candidates: list[int]
    probabilities: list[float] | None


@dataclass(frozen=True)
class Generation:
    """Generates the images of one seed.

    Attributes:
        trained: decodes.
        latent: samples z_sem.
        class_filter: selects z_sem of one class; None: all are accepted.
        seed: random seed of z_sem and noise.
        suffix: ``.png`` or ``.nii.gz``.
        folder: the folder for the results.
    """

    trained: TrainedBundle
    latent: TrainedLatent
    class_filter: ClassFilter | None
    seed: int
    suffix: str
    folder: Path

    @property
    def picture(self) -> Path:
        """The mosaic of the first images."""
        return self.folder / "generated.png"

    def results(self, num_images: int) -> list[Path]:
        """The table, the codes, the picture and the images, in this order."""
        tables = [self.folder / f"generated.{suffix}" for suffix in ("csv", "parquet")]
        return [*tables, self.picture, *self._files(num_images)]

    def run(self, num_images: int, batch_size: int) -> float:
        """Write the missing images, and all tables and the picture.

        Returns:
            The accepted fraction of sampled z_sem; 1 without a classifier.

        Raises:
            CohortError: the classifier accepts hardly any z_sem.
        """
        codes = self._accepted_codes(num_images)
        files = self._files(num_images)
        missing = [i for i, file in enumerate(files) if not file.exists()]
        for start in track(range(0, len(missing), batch_size), f"decoding {counted(len(missing), 'image')}"):
            numbers = missing[start : start + batch_size]
            for i, image in zip(numbers, self._decode(codes, numbers), strict=True):
                file = files[i].with_name(_name(i))
                write_image(file, image, self.trained.model_range, self.suffix, self.trained.grid_affine)
        self._write_tables(codes, files)
        model_range = self.trained.model_range
        rows = _rows_of_picture(files[:_IN_PICTURE], model_range)
        write_atomic(self.picture, lambda path: draw_mosaic(rows, path, model_range))
        return num_images / (codes.candidates[-1] + 1)

    def _files(self, num_images: int) -> list[Path]:
        return [self.folder / "images" / f"{_name(i)}{self.suffix}" for i in range(num_images)]

    def _decode(self, codes: Codes, numbers: list[int]) -> Tensor:
        trained = self.trained
        x_T = image_noise(trained.x_T_shape, self.seed, [codes.candidates[i] for i in numbers]).to(trained.device)
        return trained.inferer.decode(codes.z_sem[numbers].to(trained.device), x_T, trained.network)

    def _write_tables(self, codes: Codes, files: list[Path]) -> None:
        table_file, codes_file = self.results(0)[:2]
        names = [_name(i) for i in range(len(files))]
        columns: dict[str, Any] = {"id": names, "file": [f"images/{file.name}" for file in files], "seed": self.seed}
        columns["candidate"] = codes.candidates
        if codes.probabilities is not None:
            columns["probability"] = codes.probabilities
        table = pd.DataFrame(columns)
        z_columns = {f"z_{i:03d}": column.numpy() for i, column in enumerate(codes.z_sem.T)}
        embedding = pd.DataFrame({"id": names, **z_columns})
        write_atomic(codes_file, lambda path: embedding.to_parquet(path, index=False))
        write_atomic(table_file, lambda path: table.to_csv(path, index=False, lineterminator="\n"))

    def _accepted_codes(self, count: int) -> Codes:
        """Sample z_sem until ``count`` are accepted."""
        if self.class_filter is None:
            _, z_sem = next(self._candidates(count))
            return Codes(z_sem, list(range(count)), None)
        z_accepted: list[Tensor] = []
        numbers: list[int] = []
        probabilities: list[float] = []
        for start, z_sem in self._candidates(_CANDIDATES_AT_ONCE):
            probability = self.class_filter.probabilities(z_sem)
            is_accepted = probability >= self.class_filter.min_probability
            accepted = np.flatnonzero(is_accepted)[: count - len(numbers)]
            z_accepted.append(z_sem[accepted])
            numbers += [start + int(i) for i in accepted]
            probabilities += [float(probability[i]) for i in accepted]
            num_sampled = start + len(z_sem)
            if len(numbers) == count:
                break
            if num_sampled >= _MOST_CANDIDATES * count:
                raise CohortError(
                    f"the classifier accepted {len(numbers)} of {num_sampled} z_sem, but {count} are needed; "
                    "lower min_probability"
                )
        return Codes(torch.cat(z_accepted), numbers, probabilities)

    def _candidates(self, at_once: int) -> Iterator[tuple[int, Tensor]]:
        """Yield ``at_once`` new z_sem again and again, with the number of the first of them."""
        start = 0
        while True:
            yield start, self.latent.inferer.sample(self.latent.network, at_once, seed=self.seed, start=start).cpu()
            start += at_once


def generated_suffix(image_format: Format | None, shape: tuple[int, ...]) -> str:
    """Return the suffix of images ``[C, *S]``.

    Raises:
        ConfigError: PNG cannot hold such images.
    """
    possible = image_suffix(shape)
    if image_format == "png" and possible != ".png":
        raise ConfigError(f"image_format: PNG cannot hold images of size {list(shape)}; choose nii.gz")
    return possible if image_format is None else f".{image_format}"


def _name(number: int) -> str:
    return f"{number:05d}"


def _rows_of_picture(files: list[Path], model_range: tuple[float, float]) -> dict[str, Tensor]:
    images = [read_image(file, model_range) for file in files]
    starts = range(0, len(images), _COLUMNS)
    return {f"{s} to {min(s + _COLUMNS, len(images)) - 1}": torch.stack(images[s : s + _COLUMNS]) for s in starts}
