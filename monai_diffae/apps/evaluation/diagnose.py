"""The command ``diagnose``: does the decoder use z_sem, how many dimensions are active, and how stable is it?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from monai_diffae import inferers, latents, metrics, pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.record import run_once
from monai_diffae.apps.result import Result, failed_cases
from monai_diffae.apps.settings import Figures, Reading, Run, Seed, ValidationChoice
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import write_csv
from monai_diffae.data.fingerprints import json_digest
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import CohortError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.latents import representation

if TYPE_CHECKING:
    Codes = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)

_FAILURES, _CHART = "diagnosis_failures.csv", "diagnosis.png"
_UNCHANGED, _OTHER_SCAN = "unchanged", "other scan"
_FEW_PATIENTS = 30


@command
def diagnose(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    num_levels: Annotated[int, Ge(1)] = 10,
    seed: Seed = 0,
    choice: ValidationChoice = ValidationChoice(),
    reading: Reading = Reading(),
    run: Run = Run(),
    figures: Figures = Figures(),
) -> Result:
    """Measure whether the decoder uses z_sem, how many dimensions of z_sem are active, and how stable it is.

    ``out/noise_levels.csv`` has one row per noise level: ``timestep``, ``log_snr``; the denoising loss with a case's
    own z_sem, with that of another patient, and with the mean of all other patients (``loss_own``, ``loss_other``,
    ``loss_mean``); the last two divided by the first (``z_sem_usage``, ``z_sem_usage_mean``); and ``own_is_better``,
    the share of cases with a lower loss for their own z_sem than for the other.

    ``out/stability.csv`` has one row per change of the image (flipped, noise, shifted, darker, brighter, another scan
    of the patient): ``ratio`` and ``ratio_90``, the median and 90th percentile of the distance that z_sem (normalised)
    moves, divided by the median distance between patients; and ``rank_1``, the share of cases still closest to
    themselves. ``out/diagnosis.png`` shows both tables.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        num_levels: Noise levels at which the loss is measured: the centres of this many equal intervals of timesteps.
        seed: Random seed of the noise, a function of the seed, the case's id and the level.
        choice: Which cases; training cases give too high a use of z_sem.

    Returns:
        The folder; ``z_sem_usage`` and ``z_sem_usage_mean`` over all noise levels; ``dimensions``, the fields of
        :class:`~monai_diffae.latents.ActiveDimensions`; ``noise_levels`` and ``stability``, the rows of the tables.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained, or ``out`` holds results made from other
            things.
        CohortError: there is no usable case, or all cases are of one patient.
    """
    session = sessions.Session.open(bundle, cohort, reading=reading, run=run)
    cases = session.choose(choice)
    patients = json_digest([case.patient for case in cases])
    made_from = session.made_from(
        cases, decodes=False, patients=patients, num_levels=num_levels, seed=seed, dpi=figures.dpi
    )

    def make() -> Mapping[str, Any]:
        read = session.read(cases, out, _FAILURES, named=bool(choice.cases))
        return Diagnosis(session, read, num_levels, seed).run(out, figures)

    results = [out / "noise_levels.csv", out / "stability.csv", *figures.files(out / _CHART)]
    measured, skipped = run_once("diagnose", out, results, made_from, make, overwrite=run.overwrite)
    representation.warn_if_unused(measured["z_sem_usage"])
    incomplete = failed_cases(measured["num_failed"], measured["num_cases"], _FAILURES)
    return Result(out, measured, _notes(measured), incomplete, skipped=skipped)


def _notes(figures: Mapping[str, Any]) -> list[str]:
    """The use of z_sem, its dimensions, and one line per change of the image."""
    dims = figures["dimensions"]
    return [
        f"z_sem_usage {figures['z_sem_usage']:.3f}: loss with another patient's z_sem / own z_sem "
        f"(with the mean z_sem: {figures['z_sem_usage_mean']:.3f}; {counted(figures['num_cases'], 'case')})",
        f"{dims['active']} of {dims['dims']} dimensions active, participation ratio "
        f"{dims['participation_ratio']:.1f}, {dims['dims_for_95_percent']} components for 95 % of the variance",
        *(
            f"{row['change']}: z_sem moves {row['ratio']:.3f} of the way to another patient, rank-1 {row['rank_1']:.1%}"
            for row in figures["stability"]
        ),
    ]


@dataclass(frozen=True)
class Diagnosis:
    """Diagnoses a bundle on the cases of a session."""

    session: sessions.Session
    read: sessions.ReadCases
    num_levels: int
    seed: int

    def run(self, out: Path, figures: Figures) -> dict[str, Any]:
        """Write the tables and the chart into a folder, and return the results."""
        num_patients = int(self.patients.max()) + 1
        if num_patients < _FEW_PATIENTS:
            logger.warning(
                "%s of %s are few, so the figures are unreliable; use %d patients or more",
                counted(len(self.read.cases), "case"),
                counted(num_patients, "patient"),
                _FEW_PATIENTS,
            )
        codes = self.encode_views()
        levels = self.noise_levels(self.codes_to_compare(codes[_UNCHANGED]))
        stable = self.stability_table(codes)
        write_csv(out / "noise_levels.csv", levels)
        write_csv(out / "stability.csv", stable)
        figures.write(out / _CHART, pictures.draw_diagnosis(levels, stable))
        own, other, mean = levels[["loss_own", "loss_other", "loss_mean"]].sum()
        usage = {"z_sem_usage": float(other / own), "z_sem_usage_mean": float(mean / own)}
        log_to_open_run(usage, [out / _CHART], "diagnosis")
        return {
            **usage,
            "dimensions": asdict(latents.active_dimensions(codes[_UNCHANGED])),
            "noise_levels": levels.to_dict("records"),
            "stability": stable.to_dict("records"),
            "num_cases": len(self.read.cases),
            "num_failed": len(self.read.failures),
        }

    @cached_property
    def patients(self) -> npt.NDArray[np.intp]:
        """The number of each case's patient."""
        patients = _numbered([case.patient for case in self.read.cases])
        if patients.max() == 0:
            text = "all cases are of one patient, but z_sem is compared between patients; give more patients"
            raise CohortError(text)
        return patients

    def codes_to_compare(self, z: Codes) -> dict[str, Codes]:
        """Codes (N, D) for the loss: a case's own, that of the next case of another patient, the others' mean."""
        twice = np.tile(self.patients, 2)  # the first case follows the last
        changes = np.flatnonzero(twice[1:] != twice[:-1]) + 1
        others = changes[np.searchsorted(changes, np.arange(len(z)), side="right")]
        patient_sums = np.zeros((self.patients.max() + 1, z.shape[1]))
        np.add.at(patient_sums, self.patients, z)
        sum_of_others = patient_sums.sum(axis=0) - patient_sums[self.patients]
        num_others = len(z) - np.bincount(self.patients)[self.patients]
        mean = (sum_of_others / num_others[:, None]).astype(np.float32)
        return {"own": z, "other": z[others % len(z)], "mean": mean}

    def encode_views(self) -> dict[str, Codes]:
        """z_sem (N, D) of the images that the encoder sees, unchanged and with each change."""
        trained, read = self.session.trained, self.read
        parts: dict[str, list[Codes]] = {}
        text = f"encoding {counted(len(read.cases), 'case')}"
        for cases, _, encoder_images in read.batches(self.session.run.batch_size, text):
            seeds = [seed_of("view", case.id) for case in cases]
            noise = image_noise(tuple(encoder_images.shape[1:]), self.seed, seeds)
            views = {_UNCHANGED: encoder_images, **metrics.changed_views(encoder_images, noise, trained.model_range)}
            for name, view in views.items():
                z_sem = inferers.encode_exactly(view.to(trained.device), trained.network, trained.inferer)
                parts.setdefault(name, []).append(z_sem.cpu().numpy())
        return {name: np.concatenate(part) for name, part in parts.items()}

    def noise_levels(self, codes: Mapping[str, Codes]) -> pd.DataFrame:
        """The table of losses, one row per timestep."""
        schedule = self.session.trained.inferer.schedule
        rows = []
        for timestep, losses in self.losses(codes).items():
            own, other, mean = (float(losses[name].mean()) for name in ("own", "other", "mean"))
            rows.append(
                {
                    "timestep": timestep,
                    "log_snr": schedule.log_snr(timestep),
                    "loss_own": own,
                    "loss_other": other,
                    "loss_mean": mean,
                    "z_sem_usage": other / own,
                    "z_sem_usage_mean": mean / own,
                    # a decoder that ignores z_sem has equal losses, which count as half
                    "own_is_better": float((losses["other"] - losses["own"]).sign().mean() + 1) / 2,
                }
            )
        return pd.DataFrame(rows)

    def losses(self, codes: Mapping[str, Codes]) -> dict[int, dict[str, torch.Tensor]]:
        """The loss (N,) of each case, by timestep and name of the z_sem."""
        trained, read = self.session.trained, self.read
        inferer = trained.inferer
        timesteps = inferer.schedule.stratified_timesteps(self.num_levels).tolist()
        parts: dict[int, dict[str, list[torch.Tensor]]] = {t: {name: [] for name in codes} for t in timesteps}
        text = f"denoising {counted(len(read.cases), 'case')} at {counted(self.num_levels, 'level')}"
        start = 0
        for cases, images, _ in read.batches(self.session.run.batch_size, text):
            images = images.to(trained.device)
            x0 = images if inferer.first_stage is None else inferer.first_stage.encode(images)
            z_sem = {name: torch.from_numpy(z[start : start + len(cases)]).to(x0) for name, z in codes.items()}
            start += len(cases)
            for t in timesteps:
                noise = image_noise(tuple(x0.shape[1:]), self.seed, [seed_of(t, case.id) for case in cases]).to(x0)
                for name, losses in metrics.level_losses(x0, trained.network, z_sem, inferer, t, noise).items():
                    parts[t][name].append(losses.cpu())
        return {t: {name: torch.cat(part).double() for name, part in by_name.items()} for t, by_name in parts.items()}

    def stability_table(self, codes: Mapping[str, Codes]) -> pd.DataFrame:
        """The table of changes, one row per change; other scans are compared if a patient has several."""
        statistics = latents.LatentStatistics.of(codes[_UNCHANGED])
        z_norm = {name: statistics.normalise(z) for name, z in codes.items()}
        z = z_norm.pop(_UNCHANGED)
        changes = {name: representation.stability(z, changed, self.patients) for name, changed in z_norm.items()}
        scans = _numbered([case.images for case in self.read.cases])
        slices = _numbered([case.slice_index for case in self.read.cases])
        listed = set(zip(self.patients.tolist(), slices.tolist(), scans.tolist(), strict=True))
        if len(listed) > len({each[:2] for each in listed}):  # several scans of a patient, or of one of the slices
            changes[_OTHER_SCAN] = representation.stability(z, z, self.patients, scans, slices)
        else:
            logger.info("no patient has several scans among these cases, so other scans are not compared")
        return pd.DataFrame([{"change": name, **asdict(each)} for name, each in changes.items()])


def _numbered(values: Sequence[object]) -> npt.NDArray[np.intp]:
    return np.unique([str(value) for value in values], return_inverse=True)[1]
