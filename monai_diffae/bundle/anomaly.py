"""Anomaly maps, scores and masks of a case, calibrated with held-out cases, which the bundle stores."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_diffae.bundle.code import trusting
from monai_diffae.bundle.config import model_config
from monai_diffae.bundle.folders import WriteLock
from monai_diffae.bundle.layout import ANOMALY, models_folder
from monai_diffae.bundle.loading import TrainedBundle, load_bundle
from monai_diffae.bundle.model_file import read_model, write_model
from monai_diffae.bundle.opened_case import OpenedCase
from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cases import Case
from monai_diffae.data.progress import track
from monai_diffae.diffusion.noise import seed_of
from monai_diffae.errors import CohortError, ConfigError, OmittableError, ScanError, one_line
from monai_diffae.inferers.exact_encoding import encode_exactly
from monai_diffae.inferers.noised_images import estimate_from_noised
from monai_diffae.latents.neighbors import p_values
from monai_diffae.metrics.anomaly import (
    anomaly_maps,
    cross_fitted_maps,
    highest_mean,
    residual_spread,
    smoothed_residuals,
)

logger = logging.getLogger(__name__)

_TOO_LARGE = 2**32  # for a number of the settings
_TENSORS = ("mean_squares", "scores", "scans", "quantiles")
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
    """Compares the residuals of a case with those of held-out cases, which ``models/anomaly.safetensors`` holds.

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
            ConfigError: the bundle is not calibrated, or belongs to another model or configuration.
            UnsafeInputError: the file holds a formula or a free text.
            ScanError: the file is damaged.
        """
        path, name = models_folder(trained.folder) / ANOMALY, name or trained.folder.name
        advice = f"run monai-diffae calibrate {name} COHORT"
        if not path.is_file():
            raise ConfigError(f"{name}: is not calibrated for anomaly maps (no models/{ANOMALY}); {advice}")
        model = read_model(path, "anomaly")
        try:
            values = model.description["settings"]
            settings = AnomalySettings(**{**values, "noise_levels": tuple(values["noise_levels"])})
            numbers = (*settings.noise_levels, *astuple(settings)[1:])
            is_usable = all(0 <= number < _TOO_LARGE for number in numbers) and isinstance(settings.draws, int)
            if not is_usable or settings.fraction > 1:
                raise ValueError(numbers)
            tensors = {key: model.tensors[key] for key in _TENSORS}
            detector = cls(settings, **tensors, made_from=dict(model.description["made_from"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ScanError(f"{name}: models/{ANOMALY} cannot be read; {advice}") from error
        current = calibrated_model(trained)
        differ = [key for key in current if detector.made_from.get(key) != current[key]]
        if differ:
            what = {"model": "another model", "config": "another configuration"}[differ[0]]
            raise ConfigError(f"{name}: models/{ANOMALY} belongs to {what}; {advice}")
        return detector

    @classmethod
    def load_if_usable(cls, trained: TrainedBundle) -> AnomalyDetector | None:
        """Read the detector of a trained bundle; None if there is none, or it is of another model, or damaged.

        Raises:
            UnsafeInputError: the file holds a formula or a free text.
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
        tensors = {key: getattr(self, key) for key in _TENSORS}
        description = {"settings": asdict(self.settings), "made_from": dict(self.made_from)}
        models = models_folder(folder)
        with WriteLock(models):  # a new model that is put in place meanwhile would remove the file
            return write_model(models / ANOMALY, "anomaly", tensors, description)

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
    """Checksums of what anomaly maps depend on: the model, and its description with overrides, without solvers."""
    text = json.dumps(model_config(trained.config, roots=_WHAT_MAPS_DEPEND_ON), sort_keys=True, default=str)
    return {"model": trained.sha256, "config": hashlib.sha256(text.encode()).hexdigest()}


# -- calibration -------------------------------------------------------------------------------------------------------


FEWEST_SCANS = 19  # with fewer, no p-value can be below .05
_SHARES = np.concatenate([np.linspace(0, 0.9, 91), 1 - np.geomspace(0.1, 1e-6, 101)[1:], [1.0]])
_MOST_VOXELS = 2**22  # of the held-out maps, from which the quantiles are computed


def draw_scans(cases: Sequence[Case], limit: int, seed: int = 0) -> list[Case]:
    """Draw at most ``limit`` scans, with all slices of a volume; as many patients as possible take part.

    The draw is a function of the seed and the ids of the patients and scans, not of the order of the cases. The cases
    stay in their order.
    """
    files: dict[str, dict[str, str]] = {}  # by patient and scan; the draw must not depend on the folders in a path
    for case in cases:
        files.setdefault(case.patient, {})[str(case.images)] = case.file
    ranked: list[tuple[int, int, str]] = []
    for patient, own in files.items():
        order = sorted((seed_of(seed, file), scan) for scan, file in own.items())
        ranked += [(turn, seed_of(seed, patient), scan) for turn, (_, scan) in enumerate(order)]
    drawn = {scan for _, _, scan in sorted(ranked)[:limit]}
    return [case for case in cases if str(case.images) in drawn]


def fit_detector(
    trained: TrainedBundle,
    cases: Sequence[Case],
    images: Iterator[tuple[Tensor, Tensor]],
    settings: AnomalySettings,
    made_from: Mapping[str, Any] | None = None,
) -> AnomalyDetector:
    """Calibrate with normal cases that the bundle was not trained on.

    ``images`` are each case's image (C, *S) and what the encoder sees (C', *S), preprocessed, in the order of the
    cases.
    """
    patients = np.unique([case.patient for case in cases], return_inverse=True)[1]
    if len(cases) < 2 or patients.max() == 0:
        raise CohortError("calibration needs held-out cases of at least 2 patients; give more patients")
    residuals = torch.cat([_residual(trained, image, encoder_image, settings) for image, encoder_image in images])
    maps = cross_fitted_maps(residuals, patients.tolist(), settings.floor, settings.smoothing)
    scans = np.unique([str(case.images) for case in cases], return_inverse=True)[1]
    if scans.max() + 1 < FEWEST_SCANS:
        logger.warning(
            "calibration: with %d held-out scans, the lowest possible p-value is %.2g; %d scans or more allow p-values "
            "of .05", scans.max() + 1, 1 / (scans.max() + 2), FEWEST_SCANS,
        )  # fmt: skip
    voxels = maps.flatten()
    values = np.quantile(voxels[:: -(-len(voxels) // _MOST_VOXELS)].double().numpy(), _SHARES)
    return AnomalyDetector(
        settings=settings,
        mean_squares=residuals.square().mean(dim=0),
        scores=highest_mean(maps, settings.fraction).double(),
        scans=torch.from_numpy(scans),
        quantiles=torch.from_numpy(np.stack([_SHARES, values])),
        made_from={**calibrated_model(trained), **(made_from or {})},
    )


def _residual(trained: TrainedBundle, image: Tensor, encoder_image: Tensor, settings: AnomalySettings) -> Tensor:
    """The residual (1, 1, *S) of an image, on the CPU."""
    image, encoder_image = (tensor.as_subclass(Tensor)[None].to(trained.device) for tensor in (image, encoder_image))
    z_sem = encode_exactly(encoder_image, trained.inferer, trained.network)
    return image_residuals(trained, image, z_sem, settings)[1].cpu()


def calibrate_trained(
    folder: str | Path, cases: Sequence[Case], dataset: CachedCases, *, limit: int, device: str | torch.device
) -> None:
    """Calibrate a bundle at the end of its training, unless it is calibrated already.

    Any problem is a warning only, because the training is complete; the next run of it, or the command ``calibrate``,
    calibrates again.

    Args:
        folder: the trained bundle.
        cases: the validation cases.
        dataset: their preprocessed images; cases that could not be read are absent.
        limit: how many scans to use at most; 0: do not calibrate.
        device: where to compute.
    """
    folder = Path(folder)
    if limit == 0:
        return
    try:
        with trusting():  # its code has just been trained
            trained = load_bundle(folder, device)
        if AnomalyDetector.load_if_usable(trained) is not None:
            return
        readable = {str(item["id"]): index for index, item in enumerate(dataset.items)}
        drawn = draw_scans([case for case in cases if case.id in readable], limit)
        text = f"calibrating anomaly maps with {len(drawn)} held-out cases"
        scans = dataset.images()
        items = (scans[readable[case.id]] for case in track(drawn, text))
        images = ((item["image"], item[trained.encoder_key]) for item in items)
        fit_detector(trained, drawn, images, AnomalySettings()).save(folder)
    except Exception as error:  # whatever happens here, the model is trained
        logger.warning(
            "the training is complete, but anomaly maps are not calibrated (%s); run monai-diffae calibrate %s COHORT "
            "with other held-out cases", one_line(error), folder.name,
        )  # fmt: skip
