"""Anomaly maps, scores and masks of a case, calibrated with the held-out cases that the bundle stores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from monai_diffae.bundle.config import model_config
from monai_diffae.bundle.layout import ANOMALY, MODELS, models_folder
from monai_diffae.bundle.private_values import without_private_values
from monai_diffae.bundle.writing import WriteLock
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.torch_files import read_torch_file
from monai_diffae.errors import ConfigError, OmittableError, ScanError
from monai_diffae.inferers.noised_images import estimate_from_noised
from monai_diffae.latents.neighbors import p_values
from monai_diffae.metrics.anomaly import anomaly_maps, highest_mean, residual_spread, smoothed_residuals
from monai_diffae.official.checkpoint_files import read_safetensors

if TYPE_CHECKING:
    from monai_diffae.bundle.loading import TrainedBundle
    from monai_diffae.bundle.opened_case import OpenedCase

_WHAT_MAPS_DEPEND_ON = ("network_def", "preprocessing", "diffusion", "model_range", "encoder_key")


@dataclass(frozen=True)
class AnomalySettings:
    """How residuals become maps and scores. The defaults were chosen by ``benchmarks/anomaly.py``.

    Attributes:
        noise_levels: the share of all timesteps at which images are noised: more noise removes larger lesions, but
            keeps less of the image.
        draws: noises per level.
        seed: random seed of the noise.
        smoothing: standard deviation in voxels of the Gaussian that smooths residuals, and then maps.
        floor: share of the mean variance that is added to each voxel's.
        fraction: a score is the mean of this share of the voxels, those with the highest values.
    """

    noise_levels: tuple[float, ...] = (0.3,)
    draws: int = 8
    seed: int = 0
    smoothing: float = 1.0
    floor: float = 1.0
    fraction: float = 0.01


@dataclass(frozen=True, eq=False)
class Anomaly:
    """What :class:`AnomalyDetector` finds in a case.

    Attributes:
        map: (N, 1, *S), the size of the residual divided by its usual size at the voxel.
        score: the mean of the highest values of the map; of several slices, the highest.
        p_value: the share of held-out cases with at least this score, from 1 / (n + 1) to 1. A new case of the same
            kind has a p-value below a with a probability of about a.
        reconstruction: (N, C, *S), the image that the model expects.
    """

    map: Tensor
    score: float
    p_value: float
    reconstruction: Tensor = field(repr=False)
    _detector: AnomalyDetector = field(repr=False)

    def mask(self, quantile: float = 0.99) -> Tensor:
        """The voxels (N, 1, *S) whose map is above a quantile of the voxels of held-out cases, bool.

        Raises:
            ConfigError: the quantile is not from 0 to 1.
        """
        return self.map > self._detector.threshold(quantile)


@dataclass(frozen=True, eq=False)
class AnomalyDetector:
    """Compares the residuals of a case with those of held-out cases, which ``models/anomaly.pt`` holds.

    The residual is the difference between an image and the model's estimate of it from its noised version and z_sem
    (:func:`~monai_diffae.inferers.noised_images.estimate_from_noised`). A map is the smoothed residual divided by its
    root mean square over held-out cases, voxel by voxel, and smoothed again.

    Attributes:
        settings: how residuals become maps and scores.
        mean_squares: (1, *S), the mean over held-out cases of the squared residuals.
        scores: (n,) float64, the scores of the held-out images, with a spread fitted without their patients.
        scans: (n,), the number of the scan of each image: equal for the slices of a volume.
        quantiles: (2, Q) float64: shares, and the values of the held-out maps below which these shares of voxels lie.
        made_from: checksums of the weights and of what else the maps depend on.

    Example:
        >>> trained = load_bundle("my_model")  # doctest: +SKIP
        >>> case = trained.open("scan.nii.gz")  # doctest: +SKIP
        >>> anomaly = AnomalyDetector.load(trained)(case)  # doctest: +SKIP
        >>> case.write("mask.nii.gz", case.back_mask(anomaly.mask(0.99)))  # doctest: +SKIP
    """

    settings: AnomalySettings
    mean_squares: Tensor
    scores: Tensor
    scans: Tensor
    quantiles: Tensor
    made_from: Mapping[str, Any]

    @classmethod
    def load(cls, trained: TrainedBundle, name: str | None = None) -> AnomalyDetector:
        """Read the detector of a trained bundle.

        Args:
            trained: the bundle.
            name: the bundle's name in error messages, such as ``my_app/bundle``; None: that of its folder.

        Raises:
            ConfigError: the bundle is not calibrated, or was calibrated with other weights or another configuration.
            UnsafeInputError: reading the file would run code.
            ScanError: the file is damaged.
        """
        path, name = models_folder(trained.folder) / ANOMALY, name or trained.folder.name
        advice = f"run monai-diffae calibrate {name} COHORT"
        if not path.is_file():
            raise ConfigError(f"{name}: is not calibrated for anomaly maps (no models/{ANOMALY}); {advice}")
        content = read_torch_file(path, f"cannot be read; {advice}")
        try:
            settings = AnomalySettings(**content["settings"])
            tensors = {key: content[key] for key in ("mean_squares", "scores", "scans", "quantiles")}
            detector = cls(settings, **tensors, made_from=content["made_from"])
        except (KeyError, TypeError) as error:
            raise ScanError(f"{name}: models/{ANOMALY} cannot be read; {advice}") from error
        current = calibrated_model(trained)
        differ = [key for key in current if detector.made_from.get(key) != current[key]]
        if differ:
            what = {"model": "other weights", "config": "another configuration"}[differ[0]]
            raise ConfigError(f"{name}: models/{ANOMALY} belongs to {what}; {advice}")
        return detector

    @classmethod
    def read_shipped(cls, trained: TrainedBundle, path: Path) -> AnomalyDetector:
        """Read the detector that is shipped with a bundle's weights, ``models/anomaly.safetensors``."""
        tensors, metadata = read_safetensors(path)
        settings = json.loads(metadata["settings"])
        settings["noise_levels"] = tuple(settings["noise_levels"])
        made_from = {**json.loads(metadata["made_from"]), **calibrated_model(trained)}
        return cls(AnomalySettings(**settings), **tensors, made_from=made_from)

    @classmethod
    def load_if_usable(cls, trained: TrainedBundle) -> AnomalyDetector | None:
        """Read the detector of a trained bundle; None if there is none, or it is of another model, or damaged.

        Raises:
            UnsafeInputError: reading the file would run code.
        """
        try:
            return cls.load(trained)
        except OmittableError:
            return None

    def save(self, folder: Path) -> Path:
        """Write the detector into a bundle's folder, in one atomic step.

        Raises:
            ConfigError: another process trains or publishes the bundle.
            MachineError: the disk is full, or the folder cannot be written.
        """
        tensors = {key: getattr(self, key) for key in ("mean_squares", "scores", "scans", "quantiles")}
        content = {"settings": asdict(self.settings), **tensors, "made_from": dict(self.made_from)}
        with WriteLock(folder / MODELS):  # a new model that is put in place meanwhile would remove the file
            return write_atomic(folder / MODELS / ANOMALY, lambda path: torch.save(content, path))

    def __call__(self, case: OpenedCase) -> Anomaly:
        """The anomaly map, score and p-value of a case."""
        reconstruction, residuals = image_residuals(case.trained, case.images, case.z_sem, self.settings)
        maps = anomaly_maps(residuals, self.spread.to(residuals.device), self.settings.smoothing)
        scores = highest_mean(maps, self.settings.fraction)
        return Anomaly(maps, float(scores.max()), self._p_value(scores), reconstruction, self)

    @cached_property
    def spread(self) -> Tensor:
        """The usual size of the residual at each voxel, (1, *S)."""
        return residual_spread(self.mean_squares, self.settings.floor)

    @cached_property
    def scan_scores(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The scores of the held-out scans: of a volume's slices, the highest."""
        scans = self.scans.numpy()
        return np.array([self.scores.numpy()[scans == scan].max() for scan in np.unique(scans)])

    def threshold(self, quantile: float) -> float:
        """The map's value below which this share of the voxels of held-out cases lies.

        Raises:
            ConfigError: the quantile is not from 0 to 1.
        """
        if not 0 <= quantile <= 1:
            raise ConfigError(f"quantile: {quantile!r} is not from 0 to 1")
        shares, values = self.quantiles.numpy()
        return float(np.interp(quantile, shares, values))

    def _p_value(self, scores: Tensor) -> float:
        """The p-value of an image, or of the slices of a volume."""
        # The highest score of several slices is compared with the highest scores of held-out volumes. If these are
        # single images, the p-value is corrected for the number of slices (Bonferroni), which is safe but may be high.
        highest = float(scores.max())
        has_volumes = len(self.scan_scores) < len(self.scores)
        reference = self.scan_scores if len(scores) > 1 and has_volumes else self.scores.numpy()
        p_value = float(p_values([highest], reference, [False])[0])
        return p_value if has_volumes else min(1.0, p_value * len(scores))


@torch.no_grad()
def image_residuals(
    trained: TrainedBundle, images: Tensor, z_sem: Tensor, settings: AnomalySettings
) -> tuple[Tensor, Tensor]:
    """The model's estimates (N, C, *S) of images, and the smoothed residuals (N, 1, *S)."""
    estimates = estimate_from_noised(
        images, z_sem, trained.network, trained.inferer,
        noise_levels=settings.noise_levels, draws=settings.draws, seed=settings.seed,
    )  # fmt: skip
    residuals = smoothed_residuals(images, estimates, settings.smoothing)
    if not bool(residuals.isfinite().all()):
        raise ConfigError(
            f"{trained.folder.name}: the model estimates values that are not finite; train it again with a lower "
            "learning_rate"
        )
    return estimates, residuals


def calibrated_model(trained: TrainedBundle) -> dict[str, str]:
    """Checksums of what anomaly maps depend on: the weights, and the configuration without paths and solvers."""
    config = without_private_values(model_config(trained.config, roots=_WHAT_MAPS_DEPEND_ON))
    text = json.dumps(config, sort_keys=True, default=str)
    return {"model": trained.sha256, "config": hashlib.sha256(text.encode()).hexdigest()}
