"""Whether the decoder uses z_sem, how many of its dimensions vary, and what leaves z_sem as it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from monai_diffae.apps.results import checksum_of, log_to_open_run, run_once
from monai_diffae.apps.session import BundleCases, OpenedCohort, check_choice, checksum_of_cases, open_cohort
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.inferers.exact_encoding import encode_exactly
from monai_diffae.latents import LatentStatistics
from monai_diffae.latents.dimensions import active_dimensions
from monai_diffae.latents.stability import stability
from monai_diffae.metrics.views import changed_views
from monai_diffae.metrics.z_usage import level_losses
from monai_diffae.pictures.diagnosis import draw_usage

logger = logging.getLogger(__name__)

Codes = NDArray[np.float32]

_FEW_PATIENTS = 30

UNCHANGED = "unchanged"
RESCAN = "other scan"


@dataclass(frozen=True)
class UsageResult:
    """What :func:`usage` made.

    Attributes:
        folder: with ``usage.csv``, ``stability.csv`` and ``usage.png``; ``usage.json`` has the figures.
        figures: ``z_sem_usage`` and ``z_sem_usage_mean``, the loss with another patient's and with the mean z_sem over
            that with a case's own; ``levels``, ``dimensions`` and ``stability``: all else.
        num_cases: how many were looked at.
        num_failed: cases that could not be used, listed in ``usage_failures.csv``.
        skipped: whether all was there already.
    """

    folder: Path
    figures: dict[str, Any]
    num_cases: int
    num_failed: int
    skipped: bool = False


def usage(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str | None = "val",
    limit: int | None = None,
    num_levels: int = 10,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    device: str | None = None,
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> UsageResult:
    """Report what a trained bundle's z_sem is worth to it, on cases that it was not trained on.

    - ``out/usage.csv``, a row a noise level: ``timestep``, ``log_snr``, the denoising loss with a case's own z_sem,
      with another patient's and with the mean of all other patients' (``loss_own``, ``loss_other``, ``loss_mean``),
      the last two over the first (``usage``, ``usage_mean``), and ``own_is_better``, the share of cases whose own
      z_sem gives a lower loss than the other's.
    - ``out/stability.csv``, a row a change (mirrored, noisier, a little aside, darker, brighter, another scan of the
      patient): what :class:`~monai_diffae.latents.stability.Stability` says, in z_sem normalised over these cases. How
      far patients are apart is measured on 500,000 pairs of cases, drawn by a fixed seed, where there are more.
    - ``out/usage.png``: both. ``out/usage.json``: all figures, and how many dimensions are active, as
      :class:`~monai_diffae.latents.dimensions.ActiveDimensions` says.

    Args:
        bundle: a trained bundle's folder.
        cohort: a folder, table, datalist or scan.
        out: the folder for the results.
        split: ``train``, ``val`` or ``test``; None: all cases.
        limit: at most so many, the first ones.
        num_levels: timesteps that the loss is taken at, the middles of so many equal parts.
        seed: of the noise, which is a function of the seed, the case's id and the level.
        batch_size: images at once.
        workers: processes that read and preprocess.
        device: where to compute; the GPU if there is one when None.
        columns: what the cohort's table calls our words.
        overwrite: make it anew although it is there.
        overrides: values for keys of the bundle's config.

    Raises:
        ConfigError: no trained bundle, an argument out of range, or ``out`` holds another result.
        CohortError: no usable case, or all are of one patient.

    Example:
        >>> usage("bundle", "cohort.csv", "out", num_levels=0)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: num_levels: 0 is below 1
    """
    check_choice(split, limit)
    for name, value in {"num_levels": num_levels, "batch_size": batch_size}.items():
        if value < 1:
            raise ConfigError(f"{name}: {value} is below 1")
    opened = open_cohort(bundle, cohort, device=device, columns=columns, overrides=overrides)
    chosen = opened.choose(split=split, limit=limit)
    folder = Path(out)
    made_from = {
        **opened.made_from, "cases": checksum_of_cases(chosen), "num_levels": num_levels, "seed": seed,
        "patients": checksum_of([case.patient for case in chosen]),
    }  # fmt: skip
    levels_file, stability_file, picture = (folder / name for name in ("usage.csv", "stability.csv", "usage.png"))

    def make() -> dict[str, Any]:
        read = opened.read(chosen, folder, workers, "usage_failures.csv")
        people = _People.of(read.cases)
        num_patients = int(people.patients.max()) + 1
        if num_patients < _FEW_PATIENTS:
            logger.warning(
                "%d cases of %d patients are few: other patients may give other figures; take %d patients or more",
                len(read.cases), num_patients, _FEW_PATIENTS,
            )  # fmt: skip
        codes = _encode(opened, read, batch_size, seed)
        levels = _levels(opened, read, people.with_others(codes[UNCHANGED]), num_levels, batch_size, seed)
        stable = _stability(codes, people)
        write_atomic(levels_file, lambda path: levels.to_csv(path, index=False, lineterminator="\n"))
        write_atomic(stability_file, lambda path: stable.to_csv(path, index=False, lineterminator="\n"))
        write_atomic(picture, lambda path: draw_usage(levels, stable, path))
        own, other, mean = levels[["loss_own", "loss_other", "loss_mean"]].sum()
        ratios = {"z_sem_usage": float(other / own), "z_sem_usage_mean": float(mean / own)}
        figures = {
            **ratios,
            "dimensions": asdict(active_dimensions(codes[UNCHANGED])),
            "levels": levels.to_dict("records"),
            "stability": stable.to_dict("records"),
        }
        log_to_open_run(ratios, [picture], "usage")
        return {"figures": figures, "num_cases": len(read.cases), "num_failed": len(opened.failures)}

    results = [levels_file, stability_file, picture]
    numbers, skipped = run_once(folder / "usage.json", results, made_from, make, overwrite=overwrite)
    return UsageResult(folder, numbers["figures"], numbers["num_cases"], numbers["num_failed"], skipped)


def show(result: UsageResult) -> None:
    """Print the figures, a line each."""
    figures = result.figures
    print(
        f"loss with another patient's z_sem {figures['z_sem_usage']:.3f} times that with the own, "
        f"with the mean {figures['z_sem_usage_mean']:.3f} ({result.num_cases} cases)"
    )
    dims = figures["dimensions"]
    print(
        f"{dims['active']} of {dims['dims']} dimensions active, participation ratio {dims['participation_ratio']:.1f}, "
        f"{dims['dims_for_95_percent']} components for 95 % of the variance"
    )
    for row in figures["stability"]:
        print(f"{row['change']}: moved {row['ratio']:.3f} of the way to another patient, rank-1 {row['rank_1']:.1%}")


@dataclass(frozen=True, eq=False)
class _People:
    """Which of N cases are whose.

    Attributes:
        patients: (N,), numbered.
        scans: (N,), as well.
        slices: (N,), which slice of its scan each is, numbered.
    """

    patients: NDArray[np.intp]
    scans: NDArray[np.intp]
    slices: NDArray[np.intp]

    @classmethod
    def of(cls, cases: Sequence[Case]) -> _People:
        patients, scans, slices = (
            np.unique([str(value(case)) for case in cases], return_inverse=True)[1]
            for value in (lambda c: c.patient, lambda c: c.images, lambda c: c.slice_index)
        )
        if patients.max() == 0:
            raise CohortError("the cases are of one patient; z_sem is compared with another's, so give more patients")
        return cls(patients, scans, slices)

    @property
    def have_other_scans(self) -> bool:
        """Whether a patient has several: of volumes in slices, with the same slice."""
        seen = set(zip(self.patients.tolist(), self.slices.tolist(), self.scans.tolist(), strict=True))
        return len(seen) > len({place[:2] for place in seen})

    def with_others(self, z: Codes) -> dict[str, Codes]:
        """z_sem (N, D) of the cases, of the next other patient's case, and the mean of all other patients'."""
        twice = np.tile(self.patients, 2)  # after the last case comes the first
        changes = np.flatnonzero(twice[1:] != twice[:-1]) + 1
        others = changes[np.searchsorted(changes, np.arange(len(z)), side="right")]
        of_patients = np.zeros((self.patients.max() + 1, z.shape[1]))
        np.add.at(of_patients, self.patients, z)
        rest = of_patients.sum(axis=0) - of_patients[self.patients]
        num_others = len(z) - np.bincount(self.patients)[self.patients]
        return {"own": z, "other": z[others % len(z)], "mean": (rest / num_others[:, None]).astype(np.float32)}


def _encode(opened: OpenedCohort, read: BundleCases, batch_size: int, seed: int) -> dict[str, Codes]:
    """z_sem (N, D) of the cases, and of what the encoder sees of them, changed: by the name of the change."""
    trained = opened.trained
    parts: dict[str, list[Codes]] = {}
    for cases, _, seen in read.batches(batch_size, f"encoding {len(read.cases)} cases"):
        noise = image_noise(tuple(seen.shape[1:]), seed, [seed_of("view", case.id) for case in cases])
        views = {UNCHANGED: seen, **changed_views(seen, noise, trained.model_range)}
        for name, view in views.items():
            z_sem = encode_exactly(view.to(trained.device), trained.inferer, trained.network)
            parts.setdefault(name, []).append(z_sem.cpu().numpy())
    return {name: np.concatenate(part) for name, part in parts.items()}


def _levels(
    opened: OpenedCohort, read: BundleCases, codes: Mapping[str, Codes], num_levels: int, batch_size: int, seed: int
) -> pd.DataFrame:
    """The table of losses, a row a timestep."""
    trained, inferer = opened.trained, opened.trained.inferer
    timesteps = inferer.schedule.stratified_timesteps(num_levels).tolist()
    losses: dict[int, dict[str, list[torch.Tensor]]] = {t: {name: [] for name in codes} for t in timesteps}
    start = 0
    for cases, images, _ in read.batches(batch_size, f"denoising {len(read.cases)} cases at {num_levels} levels"):
        images = images.to(trained.device)
        x0 = images if inferer.first_stage is None else inferer.first_stage.encode(images)
        z_sem = {name: torch.from_numpy(z[start : start + len(cases)]).to(x0) for name, z in codes.items()}
        start += len(cases)
        for t in timesteps:
            noise = image_noise(tuple(x0.shape[1:]), seed, [seed_of(t, case.id) for case in cases]).to(x0)
            for name, values in level_losses(x0, z_sem, trained.network, inferer, t, noise).items():
                losses[t][name].append(values.cpu())
    rows = []
    for t, by_name in losses.items():
        of = {name: torch.cat(parts).double() for name, parts in by_name.items()}
        own, other, mean = (float(of[name].mean()) for name in ("own", "other", "mean"))
        rows.append(
            {
                "timestep": t, "log_snr": inferer.schedule.log_snr(t), "loss_own": own, "loss_other": other,
                "loss_mean": mean, "usage": other / own, "usage_mean": mean / own,
                "own_is_better": float((of["own"] < of["other"]).double().mean()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _stability(codes: Mapping[str, Codes], people: _People) -> pd.DataFrame:
    """The table of changes; other scans only where patients have some."""
    statistics = LatentStatistics.of(codes[UNCHANGED])
    z_norm = {name: statistics.normalise(z) for name, z in codes.items()}
    z = z_norm.pop(UNCHANGED)
    found = {name: stability(z, again, people.patients) for name, again in z_norm.items()}
    if people.have_other_scans:
        found[RESCAN] = stability(z, z, people.patients, people.scans, people.slices)
    else:
        logger.info("no patient has several scans among these cases, so rescans are left out")
    return pd.DataFrame([{"change": name, **asdict(each)} for name, each in found.items()])
