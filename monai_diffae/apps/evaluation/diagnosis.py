"""What ``evaluate`` measures of z_sem: does the decoder use it, and how stable is it?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffae import inferers, latents, metrics
from monai_diffae.apps.evaluation.quality import BundleCases
from monai_diffae.apps.evaluation.quality_tables import Row, mean_interval, summary_row
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import CohortError, counted
from monai_diffae.latents import representation
from monai_diffae.latents.probing.scores import Floats

Codes = NDArray[np.float32]

_UNCHANGED = "unchanged"


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Diagnoses a bundle on the cases that are reconstructed: the use of z_sem at some noise levels, its stability."""

    bundle: BundleCases
    num_levels: int

    def rows(self) -> Iterator[Row]:
        """The use of z_sem over all noise levels, its losses at each, and how far changes of the image move z_sem."""
        yield from self.bundle.measured("z_sem_usage", self._rows)

    def _rows(self) -> Iterator[Row]:
        name, schedule = self.bundle.name, self.bundle.session.trained.inferer.schedule
        codes = self.encode_views()
        levels = self.losses(self.codes_to_compare(codes[_UNCHANGED]))
        sums = {each: np.sum([losses[each] for losses in levels.values()], axis=0) for each in ("own", "other", "mean")}
        usage = list(self._usage({"table": "z_sem", "bundle": name}, sums))
        representation.warn_if_unused(usage[0]["value"])
        yield from usage
        for timestep, losses in levels.items():
            condition = {"table": "noise_levels", "bundle": name, "timestep": timestep}
            figures = {
                "log_snr": schedule.log_snr(timestep),
                **{f"loss_{each}": values.mean() for each, values in losses.items()},
                # a decoder that ignores z_sem has equal losses, which count as half
                "own_is_better": (np.sign(losses["other"] - losses["own"]).mean() + 1) / 2,
            }
            yield from _plain_rows(condition, figures, len(self.patients))
            yield from self._usage(condition, losses)
        for change, result in self.stability(codes).items():
            figures = asdict(result)
            num_cases = figures.pop("num_cases")
            yield from _plain_rows({"table": "stability", "bundle": name, "change": change}, figures, num_cases)

    def _usage(self, condition: Mapping[str, object], losses: Mapping[str, Floats]) -> Iterator[Row]:
        """The loss with the z_sem of others divided by the loss with a case's own, with intervals over patients."""
        own = losses["own"]
        for metric, other in {"z_sem_usage": losses["other"], "z_sem_usage_mean": losses["mean"]}.items():
            ratio = other.sum() / own.sum()
            linear = ratio + (other - ratio * own) / own.mean()  # delta method: their mean is the ratio
            yield summary_row(condition, metric, ratio, mean_interval(linear, self.patients), len(own))

    @cached_property
    def patients(self) -> NDArray[np.intp]:
        """The number of each case's patient."""
        patients = _numbered([case.patient for case in self.bundle.read.cases])
        if patients.max() == 0:
            raise CohortError("all cases are of one patient; z_sem is compared between patients, so give more of them")
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
        trained, read = self.bundle.session.trained, self.bundle.read
        parts: dict[str, list[Codes]] = {}
        text = f"encoding {counted(len(read.cases), 'case')} with small changes"
        for cases, _, encoder_images in read.batches(self.bundle.batch_size, text):
            seeds = [seed_of("view", case.id) for case in cases]
            noise = image_noise(tuple(encoder_images.shape[1:]), self.bundle.seed, seeds)
            views = {_UNCHANGED: encoder_images, **metrics.changed_views(encoder_images, noise, trained.model_range)}
            for name, view in views.items():
                z_sem = inferers.encode_exactly(view.to(trained.device), trained.network, trained.inferer)
                parts.setdefault(name, []).append(z_sem.cpu().numpy())
        return {name: np.concatenate(part) for name, part in parts.items()}

    def losses(self, codes: Mapping[str, Codes]) -> dict[int, dict[str, Floats]]:
        """The loss (N,) of each case, by timestep and name of the z_sem."""
        trained, read = self.bundle.session.trained, self.bundle.read
        inferer = trained.inferer
        timesteps = inferer.schedule.stratified_timesteps(self.num_levels).tolist()
        parts: dict[int, dict[str, list[torch.Tensor]]] = {t: {name: [] for name in codes} for t in timesteps}
        text = f"denoising {counted(len(read.cases), 'case')} at {counted(self.num_levels, 'level')}"
        start = 0
        for cases, images, _ in read.batches(self.bundle.batch_size, text):
            images = images.to(trained.device)
            x0 = images if inferer.first_stage is None else inferer.first_stage.encode(images)
            z_sem = {name: torch.from_numpy(z[start : start + len(cases)]).to(x0) for name, z in codes.items()}
            start += len(cases)
            for t in timesteps:
                seeds = [seed_of(t, case.id) for case in cases]
                noise = image_noise(tuple(x0.shape[1:]), self.bundle.seed, seeds).to(x0)
                for name, losses in metrics.level_losses(x0, trained.network, z_sem, inferer, t, noise).items():
                    parts[t][name].append(losses.cpu())
        return {t: {name: torch.cat(part).double().numpy() for name, part in own.items()} for t, own in parts.items()}

    def stability(self, codes: Mapping[str, Codes]) -> dict[str, representation.Stability]:
        """How far each change moves z_sem; other scans are compared if a patient has several."""
        statistics = latents.LatentStatistics.of(codes[_UNCHANGED])
        z_norm = {name: statistics.normalise(z) for name, z in codes.items()}
        z = z_norm.pop(_UNCHANGED)
        changes = {name: representation.stability(z, changed, self.patients) for name, changed in z_norm.items()}
        scans = _numbered([case.images for case in self.bundle.read.cases])
        slices = _numbered([case.slice_index for case in self.bundle.read.cases])
        listed = set(zip(self.patients.tolist(), slices.tolist(), scans.tolist(), strict=True))
        if len(listed) > len({each[:2] for each in listed}):  # several scans of a patient, or of one of the slices
            changes["other scan"] = representation.stability(z, z, self.patients, scans, slices)
        return changes


def _plain_rows(condition: Mapping[str, object], figures: Mapping[str, float], num_cases: int) -> list[Row]:
    return [summary_row(condition, metric, value, None, num_cases) for metric, value in figures.items()]


def _numbered(values: Sequence[object]) -> NDArray[np.intp]:
    return np.unique([str(value) for value in values], return_inverse=True)[1]
