"""The work of ``diagnose``: losses with other z_sem, active dimensions, and the stability of z_sem."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.apps.results import log_to_open_run
from monai_diffae.apps.session import ReadCases, Session
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import CohortError, counted
from monai_diffae.inferers.reconstruction import encode_exactly
from monai_diffae.latents import LatentStatistics
from monai_diffae.latents.representation import stability
from monai_diffae.latents.statistics import active_dimensions
from monai_diffae.metrics.codes import changed_views, level_losses
from monai_diffae.pictures import draw_diagnosis

logger = logging.getLogger(__name__)

Codes = NDArray[np.float32]

UNCHANGED = "unchanged"
OTHER_SCAN = "other scan"

_FEW_PATIENTS = 30


@dataclass(frozen=True)
class Diagnosis:
    """Diagnoses a bundle on the cases of a session.

    Attributes:
        session: the bundle and the cohort.
        read: the cases.
        num_levels: noise levels at which the loss is measured.
        seed: random seed of the noise.
    """

    session: Session
    read: ReadCases
    num_levels: int
    seed: int

    def run(self, out: Path) -> dict[str, Any]:
        """Write the tables and the picture into a folder.

        Returns:
            The figures.

        Raises:
            CohortError: all cases are of one patient.
        """
        patients = CasePatients.of_cases(self.read.cases)
        if patients.num_patients < _FEW_PATIENTS:
            logger.warning(
                "%s of %s are few, so the figures are unreliable; use %d patients or more",
                counted(len(self.read.cases), "case"), counted(patients.num_patients, "patient"), _FEW_PATIENTS,
            )  # fmt: skip
        codes = self.encode_views()
        levels = self.noise_levels(patients.codes_to_compare(codes[UNCHANGED]))
        stable = stability_table(codes, patients)
        for name, table in {"noise_levels.csv": levels, "stability.csv": stable}.items():
            write_atomic(out / name, functools.partial(table.to_csv, index=False, lineterminator="\n"))
        picture = out / "diagnosis.png"
        write_atomic(picture, lambda path: draw_diagnosis(levels, stable, path))
        own, other, mean = levels[["loss_own", "loss_other", "loss_mean"]].sum()
        usage = {"z_sem_usage": float(other / own), "z_sem_usage_mean": float(mean / own)}
        log_to_open_run(usage, [picture], "diagnosis")
        return {
            **usage,
            "dimensions": asdict(active_dimensions(codes[UNCHANGED])),
            "noise_levels": levels.to_dict("records"),
            "stability": stable.to_dict("records"),
            "num_cases": len(self.read.cases),
            "num_failed": len(self.read.failures),
        }

    def encode_views(self) -> dict[str, Codes]:
        """z_sem (N, D) of the images that the encoder sees, unchanged and with each change."""
        trained, read = self.session.trained, self.read
        parts: dict[str, list[Codes]] = {}
        for cases, _, encoder_images in read.batches(
            self.session.run.batch_size, f"encoding {counted(len(read.cases), 'case')}"
        ):
            noise = image_noise(
                tuple(encoder_images.shape[1:]), self.seed, [seed_of("view", case.id) for case in cases]
            )
            views = {UNCHANGED: encoder_images, **changed_views(encoder_images, noise, trained.model_range)}
            for name, view in views.items():
                z_sem = encode_exactly(view.to(trained.device), trained.inferer, trained.network)
                parts.setdefault(name, []).append(z_sem.cpu().numpy())
        return {name: np.concatenate(part) for name, part in parts.items()}

    def noise_levels(self, codes: Mapping[str, Codes]) -> pd.DataFrame:
        """The table of losses, one row per timestep.

        Args:
            codes: z_sem (N, D) that the loss is measured with: ``own``, ``other`` and ``mean``.
        """
        schedule = self.session.trained.inferer.schedule
        rows = []
        for timestep, losses in self.losses(codes).items():
            own, other, mean = (float(losses[name].mean()) for name in ("own", "other", "mean"))
            rows.append(
                {
                    "timestep": timestep, "log_snr": schedule.log_snr(timestep), "loss_own": own, "loss_other": other,
                    "loss_mean": mean, "z_sem_usage": other / own, "z_sem_usage_mean": mean / own,
                    # a decoder that ignores z_sem has equal losses, which count as half
                    "own_is_better": float((losses["other"] - losses["own"]).sign().mean() + 1) / 2,
                }
            )  # fmt: skip
        return pd.DataFrame(rows)

    def losses(self, codes: Mapping[str, Codes]) -> dict[int, dict[str, Tensor]]:
        """The loss (N,) of each case, by timestep and name of the z_sem."""
        trained, read = self.session.trained, self.read
        inferer = trained.inferer
        timesteps = inferer.schedule.stratified_timesteps(self.num_levels).tolist()
        parts: dict[int, dict[str, list[Tensor]]] = {t: {name: [] for name in codes} for t in timesteps}
        text = f"denoising {counted(len(read.cases), 'case')} at {counted(self.num_levels, 'level')}"
        start = 0
        for cases, images, _ in read.batches(self.session.run.batch_size, text):
            images = images.to(trained.device)
            x0 = images if inferer.first_stage is None else inferer.first_stage.encode(images)
            z_sem = {name: torch.from_numpy(z[start : start + len(cases)]).to(x0) for name, z in codes.items()}
            start += len(cases)
            for t in timesteps:
                noise = image_noise(tuple(x0.shape[1:]), self.seed, [seed_of(t, case.id) for case in cases]).to(x0)
                for name, losses in level_losses(x0, z_sem, trained.network, inferer, t, noise).items():
                    parts[t][name].append(losses.cpu())
        return {t: {name: torch.cat(part).double() for name, part in by_name.items()} for t, by_name in parts.items()}


@dataclass(frozen=True, eq=False)
class CasePatients:
    """The patient, scan and slice of each of N cases.

    Attributes:
        patients: (N,), the number of the patient.
        scans: (N,), the number of the scan.
        slices: (N,), the number of the slice within its scan.
    """

    patients: NDArray[np.intp]
    scans: NDArray[np.intp]
    slices: NDArray[np.intp]

    @classmethod
    def of_cases(cls, cases: Sequence[Case]) -> CasePatients:
        """Number the patients, scans and slices of cases.

        Raises:
            CohortError: all cases are of one patient.
        """
        patients, scans, slices = (
            np.unique([str(value(case)) for case in cases], return_inverse=True)[1]
            for value in (lambda c: c.patient, lambda c: c.images, lambda c: c.slice_index)
        )
        if patients.max() == 0:
            raise CohortError(
                "all cases are of one patient, but z_sem is compared between patients; give more patients"
            )
        return cls(patients, scans, slices)

    @property
    def num_patients(self) -> int:
        """The number of patients."""
        return int(self.patients.max()) + 1

    @property
    def have_other_scans(self) -> bool:
        """Whether a patient has several scans, or the same slice of several scans."""
        scans = set(zip(self.patients.tolist(), self.slices.tolist(), self.scans.tolist(), strict=True))
        return len(scans) > len({scan[:2] for scan in scans})

    def codes_to_compare(self, z: Codes) -> dict[str, Codes]:
        """Codes (N, D) for the loss: a case's own, that of the next case of another patient, the others' mean."""
        twice = np.tile(self.patients, 2)  # the first case follows the last
        changes = np.flatnonzero(twice[1:] != twice[:-1]) + 1
        others = changes[np.searchsorted(changes, np.arange(len(z)), side="right")]
        patient_sums = np.zeros((self.num_patients, z.shape[1]))
        np.add.at(patient_sums, self.patients, z)
        sum_of_others = patient_sums.sum(axis=0) - patient_sums[self.patients]
        num_others = len(z) - np.bincount(self.patients)[self.patients]
        mean = (sum_of_others / num_others[:, None]).astype(np.float32)
        return {"own": z, "other": z[others % len(z)], "mean": mean}


def stability_table(codes: Mapping[str, Codes], patients: CasePatients) -> pd.DataFrame:
    """The table of changes, one row per change; other scans are compared if a patient has several.

    Args:
        codes: z_sem (N, D) of the cases, unchanged and with each change.
        patients: the patient, scan and slice of each case.
    """
    statistics = LatentStatistics.of(codes[UNCHANGED])
    z_norm = {name: statistics.normalise(z) for name, z in codes.items()}
    z = z_norm.pop(UNCHANGED)
    changes = {name: stability(z, changed, patients.patients) for name, changed in z_norm.items()}
    if patients.have_other_scans:
        changes[OTHER_SCAN] = stability(z, z, patients.patients, patients.scans, patients.slices)
    else:
        logger.info("no patient has several scans among these cases, so other scans are not compared")
    return pd.DataFrame([{"change": name, **asdict(each)} for name, each in changes.items()])
