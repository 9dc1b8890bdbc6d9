"""Chosen cases of a cohort with their two codes: what interpolation, variation and editing start from."""

from __future__ import annotations

import logging
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_diffae.apps.results import checksum_of
from monai_diffae.bundle.checksums import checksum, config_checksum
from monai_diffae.bundle.decoding import inferer_settings
from monai_diffae.bundle.loading import TrainedBundle, open_bundle
from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cases import Case, find_cases
from monai_diffae.data.cohort_split import SplitCohort, split_cohort
from monai_diffae.data.failures import Failure, write_failures
from monai_diffae.data.progress import shown
from monai_diffae.data.tables import WORDS, column_names
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.inferers.exact_encoding import encode_exactly

logger = logging.getLogger(__name__)


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


_COHORT_KEYS = (
    "spatial_dims", "columns", "image_keys", "patient_pattern", "val_fraction", "test_fraction", "seed",
    "slice_axis", "slice_range", "slice_step",
)  # fmt: skip


@dataclass
class BundleCases:
    """The cases of a cohort that a bundle could read, preprocessed.

    Attributes:
        cases: those that could be read, in the order of ``dataset``.
        dataset: their images ``[C, *S]`` in the model's range, under the bundle's image keys.
        failures: the others.
        encoder_key: the image that the encoder sees; the decoder draws ``"image"``.
    """

    cases: list[Case]
    dataset: CachedCases
    failures: list[Failure] = field(default_factory=list)
    encoder_key: str = "image"

    def batches(self, batch_size: int, text: str) -> Iterator[tuple[list[Case], Tensor, Tensor]]:
        """Cases, images (B, C, *S) and what the encoder sees (B, C', *S); the last batch may be smaller."""
        starts = range(0, len(self.cases), batch_size)
        for start in shown(starts, text):
            items = [self.dataset[i] for i in range(start, min(start + batch_size, len(self.cases)))]
            images = torch.stack([item["image"] for item in items])
            seen = images if self.encoder_key == "image" else torch.stack([item[self.encoder_key] for item in items])
            yield self.cases[start : start + len(items)], images, seen


def read_split_cohort(
    directory: str | os.PathLike[str],
    trained: TrainedBundle,
    cohort: str | os.PathLike[str],
    columns: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[SplitCohort, str]:
    """A cohort, split and sliced as the bundle's config says; and the encoder's image key.

    That a split is drawn anew, as the training's cohort was another, is logged.

    Args:
        directory: the bundle's folder; ``configs/train.json`` has the keys that are not the model's.
        trained: the bundle.
        cohort: a folder, table, datalist or scan.
        columns: what the table calls our words; added to the config's, of which those count that the table has.
        overrides: values for the config's keys, such as ``{"slice_step": 4}``.

    Raises:
        CohortError: no usable cohort.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    config = Path(directory) / "configs" / "train.json"
    if config.is_file():
        parser.read_config(str(config))
    parser.update({**trained.config, **(overrides or {})})
    values = {key: parser.get_parsed_content(key) for key in _COHORT_KEYS if key in parser}
    of_training = {word: name for word, name in (values.get("columns") or {}).items() if word not in (columns or {})}
    values["columns"] = {**_fitting(of_training, Path(cohort)), **(columns or {})}
    encoder_key = parser.get_parsed_content("encoder_key") if "encoder_key" in parser else "image"
    split = split_cohort(cohort, **values)
    trained_on = trained.config.get("_meta_", {}).get("data_fingerprint")
    if split.is_drawn and trained_on and split.fingerprint != trained_on:
        logger.warning(
            "%s is not the cohort as it was listed in training: its split is drawn anew, and its val and test cases "
            "may have been trained on; use the training's table, or a column split",
            Path(cohort).name,
        )
    return split, str(encoder_key)


def _fitting(columns: Mapping[str, str], cohort: Path) -> dict[str, str]:
    """The training table's names of our words, less those that this table has under our word alone."""
    named = {word: name for word, name in columns.items() if word != name}
    if not named or cohort.suffix.lower() not in (".csv", ".tsv", ".json") or not cohort.is_file():
        return named
    header = column_names(cohort)
    lacking = [word for word, name in named.items() if word not in header and name not in header]
    if lacking and cohort.suffix.lower() != ".json":
        word = lacking[0]
        has = textwrap.shorten(", ".join(header), 80, placeholder=" ...")
        otherwise = f", or add an empty column {word} for none" if word in WORDS else ""
        raise CohortError(
            f'{cohort.name}: no column "{named[word]}", which was {word} in the bundle\'s training (has {has}); '
            f"name this table's with --column {word}=...{otherwise}"
        )
    return {word: name for word, name in named.items() if name in header or word not in header}


def read_cases(
    split: SplitCohort,
    trained: TrainedBundle,
    out: Path,
    *,
    encoder_key: str = "image",
    only: Sequence[Case] | None = None,
    workers: int = 0,
    failures_name: str = "failures.csv",
) -> BundleCases:
    """Read and preprocess cases once; those that fail are written to ``out``, to the file ``failures_name``.

    Raises:
        CohortError: none can be used.
    """
    cases = list(split.cases if only is None else only)
    dataset = CachedCases(
        [case.item() for case in cases],
        trained.preprocessing,
        cache_dir=out / ".cache",
        num_workers=workers,
        keys=list(dict.fromkeys([*trained.image_keys, encoder_key])),  # a transform may make the encoder's
    )
    failures_file = out / failures_name
    try:
        dataset.prepare()
    except CohortError:
        if dataset.failures:
            write_failures(failures_file, [*split.failures, *dataset.failures])
        raise
    failures = [*split.failures, *dataset.failures]
    write_failures(failures_file, failures)
    by_id = {case.id: case for case in cases}
    return BundleCases([by_id[str(item["id"])] for item in dataset.items], dataset, failures, encoder_key)
