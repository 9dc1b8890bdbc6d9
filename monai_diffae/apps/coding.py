"""Chosen cases of a cohort with their two codes: what interpolation, variation and editing start from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_diffae.apps.bundles import TrainedBundle
from monai_diffae.apps.encoding import encode_exactly
from monai_diffae.apps.reading import (
    BundleCases,
    checksum,
    config_checksum,
    inferer_settings,
    open_bundle,
    read_cases,
    read_split_cohort,
    shown,
)
from monai_diffae.apps.records import checksum_of
from monai_diffae.data.cases import Case, find_cases
from monai_diffae.data.failures import Failure
from monai_diffae.data.split_cohort import SplitCohort
from monai_diffae.errors import CohortError, ConfigError


@dataclass(frozen=True)
class CodedCase:
    """One case with its codes.

    Attributes:
        case: which.
        image: (1, C, *S) in the model's range.
        z_sem: (1, D).
        x_T: (1, C, *S), its own, inverted.
    """

    case: Case
    image: Tensor
    z_sem: Tensor
    x_T: Tensor


@dataclass
class OpenedCohort:
    """A trained bundle and a cohort as it sees it.

    Attributes:
        trained: the bundle.
        cohort: split, and sliced for a 2D model.
        encoder_key: the image that the encoder sees.
        made_from: what results depend on, for their record.
        failures: cases that :meth:`read` could not read.
        are_named: whether cases were chosen by their ids.
    """

    trained: TrainedBundle
    cohort: SplitCohort
    encoder_key: str
    made_from: dict[str, Any]
    failures: list[Failure] = field(default_factory=list)
    are_named: bool = False

    @property
    def encoder_sees_what_is_drawn(self) -> bool:
        """Whether the encoder can look at decoded images: not where it sees another file of the case."""
        return self.encoder_key == "image" or self.encoder_key not in self.trained.image_keys

    def choose(
        self, ids: Sequence[str] | None = None, split: str | None = None, limit: int | None = None
    ) -> list[Case]:
        """The cases of these ids, in their order; without ids the first ``limit`` of a split.

        Raises:
            CohortError: no case has the id, or none is in the split.
        """
        if ids:
            self.are_named = True
            return find_cases(self.cohort.cases, ids)
        return cases_of(self.cohort, split, limit)

    def read(
        self, cases: Sequence[Case], out: Path, workers: int = 0, failures_name: str = "failures.csv"
    ) -> BundleCases:
        """Read and preprocess cases; those that cannot be read go to ``out``, to the file ``failures_name``.

        Raises:
            CohortError: none can be used.
        """
        read = read_cases(
            self.cohort, self.trained, out, encoder_key=self.encoder_key, only=cases, workers=workers,
            failures_name=failures_name,
        )  # fmt: skip
        named = {case.id for case in cases} if self.are_named else None  # other bad scans are no concern of theirs
        self.failures = [failure for failure in read.failures if named is None or failure.case_id in named]
        return read

    def coded(self, read: BundleCases, text: str) -> Iterator[CodedCase]:
        """Each case with its codes, on the bundle's device.

        Every case is inverted by itself, so that its x_T does not depend on the others.
        """
        trained = self.trained
        for i in shown(range(len(read.cases)), text):
            item = read.dataset[i]
            image, seen = (item[key][None].to(trained.device) for key in ("image", self.encoder_key))
            z_sem = encode_exactly(seen, trained.inferer, trained.network)
            x_T, _ = trained.inferer.round_trip(image, trained.network, z_sem)
            yield CodedCase(read.cases[i], image, z_sem, x_T)

    @torch.no_grad()
    def decode(self, z_sem: Tensor, x_T: Tensor) -> Tensor:
        """Images (N, C, *S) from codes; one x_T (1, C, *S) or z_sem (1, D) serves all."""
        count = max(len(z_sem), len(x_T))
        z_sem, x_T = z_sem.expand(count, -1), x_T.expand(count, *x_T.shape[1:])
        return self.trained.inferer.decode(z_sem, x_T, self.trained.network)


def open_cohort(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    columns: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> OpenedCohort:
    """Open a trained bundle and a cohort.

    Args:
        bundle: the bundle's folder.
        cohort: a folder, table, datalist or scan.
        device: where to compute; the GPU if there is one when None.
        columns: what the cohort's table calls our words.
        overrides: values for keys of the bundle's config, such as ``{"inferer#num_steps": 50}``.

    Raises:
        ConfigError: no trained bundle, or an override of an unknown key.
        CohortError: no usable cohort.
    """
    trained = open_bundle(bundle, device, overrides)
    split, encoder_key = read_split_cohort(bundle, trained, cohort, columns, overrides)
    made_from = {
        "model": checksum(bundle), "config": config_checksum(bundle), "cohort": split.fingerprint,
        **inferer_settings(trained.inferer), "overrides": dict(overrides or {}),
    }  # fmt: skip
    return OpenedCohort(trained, split, encoder_key, made_from)


def check_choice(split: str | None, limit: int | None) -> None:
    """Refuse a split that there is not, or a limit below 1, before anything is loaded.

    Raises:
        ConfigError: it is so.
    """
    if split not in (None, "train", "val", "test"):
        raise ConfigError(f"split: {split!r} is not one of train, val, test")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: {limit} is below 1")


def cases_of(cohort: SplitCohort, split: str | None, limit: int | None) -> list[Case]:
    """The first ``limit`` cases of a split; None: of all, and all of them.

    Raises:
        CohortError: there are none.
    """
    cases = [case for case in cohort.cases if split in (None, case.split)][:limit]
    if not cases:
        raise CohortError(f"no case is in the split '{split}'; choose another, or leave it out")
    return cases


def checksum_of_cases(cases: Sequence[Case]) -> str:
    """Which cases, without their names."""
    return checksum_of([case.id for case in cases])
