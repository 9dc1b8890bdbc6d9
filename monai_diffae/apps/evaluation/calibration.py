"""Calibration of a bundle with held-out cases: the work of ``calibrate``, and what a training does at its end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_diffae.apps.session import Session
from monai_diffae.bundle.code import trusting
from monai_diffae.bundle.layout import ANOMALY, models_folder
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.bundle.model import AnomalyDetector, AnomalySettings, TrainedBundle, calibrated_model, image_residuals
from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cases import Case
from monai_diffae.data.fingerprints import json_digest
from monai_diffae.data.progress import track
from monai_diffae.diffusion.noise import seed_of
from monai_diffae.errors import CohortError, counted, one_line
from monai_diffae.inferers.reconstruction import encode_exactly
from monai_diffae.metrics.anomaly import cross_fitted_maps, highest_mean

logger = logging.getLogger(__name__)

FEWEST_SCANS = 19  # with fewer, no p-value can be below .05
_SHARES = np.concatenate([np.linspace(0, 0.9, 91), 1 - np.geomspace(0.1, 1e-6, 101)[1:], [1.0]])
_MOST_VOXELS = 2**22  # of the held-out maps, from which the quantiles are computed


def fit_or_load(
    session: Session, cases: Sequence[Case], settings: AnomalySettings, failures: Path, *, overwrite: bool
) -> tuple[Path, AnomalyDetector, bool]:
    """Calibrate a bundle, unless it was calibrated with the same cases and settings."""
    trained = session.trained
    path = models_folder(trained.folder) / ANOMALY
    made_from: dict[str, Any] = {
        "cohort": session.cohort.fingerprint,
        "cases": json_digest([(case.id, case.patient) for case in cases]),
    }
    existing = None if overwrite else AnomalyDetector.load_if_usable(trained)
    if existing is not None and existing.settings == settings and made_from.items() <= existing.made_from.items():
        logger.info("%s is complete; nothing to do (overwrite replaces it)", path.name)
        return path, existing, True
    read = session.read(cases, failures.parent, failures.name)
    text = f"calibrating with {counted(len(read.cases), 'case')}"
    items = (read.dataset[i] for i in track(range(len(read.cases)), text))
    images = ((item["image"], item[session.encoder_key]) for item in items)
    made_from["num_patients"] = len({case.patient for case in read.cases})
    made_from["num_failed"] = len(read.failures)
    detector = fit_detector(trained, read.cases, images, settings, made_from)
    return detector.save(trained.folder), detector, False


def draw_scans(cases: Sequence[Case], limit: int, seed: int = 0) -> list[Case]:
    """Draw at most ``limit`` scans of as many patients as possible, whatever the order of the cases; it stays."""
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
    """Calibrate with normal cases: images (C, *S) and what the encoder sees (C', *S), in the order of the cases."""
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
    z_sem = encode_exactly(encoder_image, trained.network, trained.inferer)
    return image_residuals(trained, image, z_sem, settings)[1].cpu()


def calibrate_trained(
    folder: str | Path, cases: Sequence[Case], dataset: CachedCases, *, limit: int, device: str | torch.device
) -> None:
    """Calibrate a bundle with validation cases at the end of its training, unless it is calibrated or ``limit`` is 0.

    Any problem is a warning only: the training is complete, and ``calibrate`` can calibrate again.
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
