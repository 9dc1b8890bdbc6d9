"""The calibration of a bundle with held-out normal cases: at the end of a training, and before ``anomaly``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from cyclopts import Group, Parameter

from monai_diffae import bundle as bundles
from monai_diffae import inferers, metrics
from monai_diffae.apps.record import only_run
from monai_diffae.apps.settings import FEWEST_CALIBRATING, Choice, Seed, Split
from monai_diffae.bundle.layout import ANOMALY, models_folder
from monai_diffae.data.cases import Case, are_patients_known, of_patients
from monai_diffae.data.fingerprints import json_digest
from monai_diffae.data.progress import track
from monai_diffae.data.scan_states import scan_contents
from monai_diffae.diffusion.noise import seed_of
from monai_diffae.errors import CohortError, ConfigError, counted, one_line
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.bundle import model as models
    from monai_diffae.data import cached, cohort_split

logger = logging.getLogger(__name__)

FAILURES = "calibration_failures.csv"
_MOST_VOXELS = 2**22  # of the held-out maps, from which the quantiles are computed


@Parameter(name="*", group=Group("Calibration", sort_key=3))
@dataclass(frozen=True)
class Calibration:
    """With which held-out scans a bundle is calibrated, and how noise is added to them."""

    calibrate_with: Path | None = None
    """First calibrate the bundle with this cohort of normal scans, which it was not trained on. By default, a bundle
    that is not calibrated uses the validation cases, if the cohort is that of its training."""
    calibration_split: Split | None = None
    """Calibrate with this split; by default ``val`` if the cohort is the training's or has splits, else all cases."""
    calibration_cases: Annotated[int, Ge(2)] = 64
    """Calibrate with at most this many scans, drawn at random from as many patients as possible."""
    noise_level: Annotated[float, Gt(0), Le(1)] = 0.3
    """Noise that is added to images, as a share of all timesteps; more finds larger anomalies."""
    draws: Annotated[int, Ge(1)] = 8
    """Number of noisy versions of each image, whose reconstructions are averaged."""
    seed: Seed = 0
    """Random seed of the calibration's noise and of the choice of scans."""


def load_calibrated(
    session: sessions.Session, calibration: Calibration, out: Path
) -> tuple[bundles.AnomalyDetector, int]:
    """The detector of a bundle, calibrated first if the user says so or if it has to be; how many cases this lost."""
    trained = session.trained
    if calibration.calibrate_with is not None:
        session = sessions.Session.of(trained, calibration.calibrate_with, reading=session.reading, run=session.run)
    elif calibration != Calibration():
        raise ConfigError("calibrate_with: the other options of the calibration need it; add it, or omit them")
    elif session.split_origin != "training" or (models_folder(trained.folder) / ANOMALY).is_file():
        return bundles.AnomalyDetector.load(trained), 0
    else:
        logger.info("%s is not calibrated: calibrating with its validation cases", trained.folder.name)
    split = calibration.calibration_split or (None if session.split_origin == "drawn" else "val")
    cases = draw_scans(session.choose(Choice(split=split)), calibration.calibration_cases, calibration.seed)
    settings = bundles.AnomalySettings((calibration.noise_level,), calibration.draws, seed=calibration.seed)
    made_from: dict[str, Any] = {
        "cohort": session.cohort.fingerprint,
        "cases": json_digest([(case.id, case.patient) for case in cases]),
        "scans": json_digest(scan_contents(cases)),
    }
    num_failed = 0
    detector = None if session.run.overwrite else bundles.AnomalyDetector.load_if_usable(trained)
    if detector is None or detector.settings != settings or not made_from.items() <= detector.made_from.items():
        with only_run(out):
            read = session.read(cases, out, FAILURES)
        rows = track(range(len(read.cases)), f"calibrating with {counted(len(read.cases), 'case')}")
        num_failed = len(read.failures)
        made_from["num_patients"] = len({case.patient for case in read.cases})
        detector = fit_detector(trained, read.cases, (read.dataset[i] for i in rows), settings, made_from)
        detector.save(trained.folder)
    logger.info(
        "calibrated with %s%s; the lowest p-value is %.2g",
        counted(len(detector.scores), "case"),
        of_patients(detector.made_from["num_patients"], are_patients_known(cases)),
        1 / (1 + len(detector.scan_scores)),
    )
    return detector, num_failed


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
    trained: bundles.TrainedBundle,
    cases: Sequence[Case],
    items: Iterable[Mapping[str, torch.Tensor]],
    settings: bundles.AnomalySettings,
    made_from: Mapping[str, Any] | None = None,
) -> bundles.AnomalyDetector:
    """Calibrate with normal cases, and their images (C, *S) in the same order."""
    patients, scans = (
        np.unique(names, return_inverse=True)[1]
        for names in ([case.patient for case in cases], [str(case.images) for case in cases])
    )
    if len(cases) < 2 or patients.max() == 0:
        raise CohortError("calibration needs held-out cases of at least 2 patients; give more patients")
    measured = [(models.image_key(item["image"]), _residual(trained, item, settings)) for item in items]
    images, residuals = [key for key, _ in measured], torch.cat([residual for _, residual in measured])
    maps = metrics.cross_fitted_maps(residuals, patients.tolist(), settings.floor, settings.smoothing)
    if scans.max() + 1 < FEWEST_CALIBRATING:
        logger.warning(
            "calibration: with %d held-out scans, the lowest possible p-value is %.2g; %d scans or more allow p-values "
            "of .05",
            scans.max() + 1,
            1 / (scans.max() + 2),
            FEWEST_CALIBRATING,
        )
    voxels = maps.flatten()[:: -(-maps.numel() // _MOST_VOXELS)].double().numpy()
    shares = np.concatenate([np.linspace(0, 0.9, 91), 1 - np.geomspace(0.1, 1e-6, 101)[1:], [1.0]])
    return bundles.AnomalyDetector(
        settings=settings,
        mean_squares=residuals.square().mean(dim=0),
        scores=metrics.highest_mean(maps, settings.fraction).double(),
        scans=torch.from_numpy(scans),
        quantiles=torch.from_numpy(np.stack([shares, np.quantile(voxels, shares)])),
        made_from={
            **models.calibrated_model(trained),
            "images": images,
            "patients": patients.tolist(),
            **(made_from or {}),
        },
    )


def _residual(
    trained: bundles.TrainedBundle, item: Mapping[str, torch.Tensor], settings: bundles.AnomalySettings
) -> torch.Tensor:
    """The residual (1, 1, *S) of an image, on the CPU."""
    image, encoder_image = (
        item[key].as_subclass(torch.Tensor)[None].to(trained.device) for key in ("image", trained.encoder_key)
    )
    z_sem = inferers.encode_exactly(encoder_image, trained.network, trained.inferer)
    return models.image_residuals(trained, image, z_sem, settings)[1].cpu()


def finish_training(
    folder: Path,
    cohort: cohort_split.SplitCohort,
    dataset: cached.CachedCases,
    limit: int,
    device: str | torch.device,
    mlflow: bool,
    tracking_uri: str | None,
    registered_model: str | None,
) -> None:
    """Calibrate a bundle after its training, and log it to the training's MLflow run if ``mlflow`` is set."""
    calibrate_trained(folder, cohort.cases, dataset, limit=limit, device=device)
    if mlflow:
        from monai_diffae.handlers import log_bundle

        log_bundle(folder, tracking_uri, registered_model)


def calibrate_trained(
    folder: str | Path, cases: Sequence[Case], dataset: cached.CachedCases, *, limit: int, device: str | torch.device
) -> None:
    """Calibrate a bundle with validation cases after its training, unless it is calibrated or ``limit`` is 0."""
    if limit == 0:
        return
    try:
        trained = bundles.load_bundle(folder, device)
        if bundles.AnomalyDetector.load_if_usable(trained) is not None:
            return
        readable = {str(item["id"]): index for index, item in enumerate(dataset.items)}
        drawn = draw_scans([case for case in cases if case.id in readable], limit)
        scans = dataset.images()
        text = f"calibrating anomaly maps with {counted(len(drawn), 'held-out case')}"
        items = (scans[readable[case.id]] for case in track(drawn, text))
        fit_detector(trained, drawn, items, bundles.AnomalySettings()).save(trained.folder)
    except Exception as error:  # whatever happens here, the model is trained
        logger.warning(
            "the training is complete, but anomaly maps are not calibrated (%s); run monai-diffae anomaly %s SCANS "
            "OUT --calibrate-with NORMAL_SCANS",
            one_line(error),
            Path(folder).name,
        )
