"""A session: a trained bundle and a cohort, opened. Every command that uses both starts from one."""

import logging
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.apps.settings import Choice, Decoding, Reading, Run, Sampling
from monai_diffae.bundle import layout
from monai_diffae.bundle.code import read_values
from monai_diffae.bundle.config import check_rules, is_formula
from monai_diffae.bundle.description import made_by_preprocessing
from monai_diffae.bundle.loading import inferer_overrides, inferer_settings, latent_statistics, load_bundle
from monai_diffae.bundle.model import ModelCase, TrainedBundle
from monai_diffae.data.cached import CachedCases, ScanCache
from monai_diffae.data.cases import Case, SplitOrigin
from monai_diffae.data.cohort_split import ModelImages, SplitCohort, split_cohort
from monai_diffae.data.cohorts import COLUMN_ROLES, column_names
from monai_diffae.data.fingerprints import json_digest
from monai_diffae.data.inspection.survey import survey_cohort
from monai_diffae.data.progress import Failure, SkippedCases, check_any_usable, track, write_failures
from monai_diffae.data.scan_states import scan_contents
from monai_diffae.data.streamed import log_failure
from monai_diffae.errors import CohortError, ScanError, counted
from monai_diffae.inferers.reconstruction import encode_exactly
from monai_diffae.policies import PathLike
from monai_diffae.transforms.writing import unwritable_series

logger = logging.getLogger(__name__)

_UNLIKE, _MANY = 3.0, 0.25  # a deviation above those of 99 % of the scans that a model knows; a share of the cases
_LOOKED_AT, _LEAST_SHARE = 9, 0.3  # scans whose headers are read; of a scan that is seen, of an image that is filled
_COHORT_KEYS = (
    "spatial_dims",
    "columns",
    "image_keys",
    "patient_pattern",
    "val_fraction",
    "test_fraction",
    "seed",
    "slice_axis",
    "slice_range",
    "slice_step",
)
_IMAGE_KEYS = ("sequences", "encoder_sequences", "region")


@dataclass
class OpenedCases:
    """Opens cases one after the other; when all are done, those that cannot be used are listed in ``file``."""

    trained: TrainedBundle
    cases: Sequence[Case]
    file: Path
    text: str  # what is done with them, for the progress bar
    failures: list[Failure]  # complete when all are done

    def __iter__(self) -> Iterator[ModelCase]:
        num_opened, skipped = 0, SkippedCases(self.file.name)
        try:
            for index, case in enumerate(track(self.cases, self.text)):
                try:
                    opened = self.trained.open(case)
                except ScanError as error:
                    self.failures.append(log_failure(case.item(), index, "image", error, skipped))
                    continue
                num_opened += 1
                yield opened
        finally:
            write_failures(self.file, self.failures)
        check_any_usable(num_opened, self.failures)


@dataclass
class ReadCases:
    """The cases of a session that could be read, preprocessed and kept, for work that needs them more than once."""

    cases: list[Case]  # the readable cases, in the order of `dataset`
    dataset: CachedCases  # their images `[C, *S]` in the model's range, under the bundle's image keys
    failures: list[Failure] = field(default_factory=list)  # the requested cases that could not be read
    encoder_key: str = "image"  # the image that the encoder sees; the decoder reconstructs `"image"`

    def batches(self, batch_size: int, text: str) -> Iterator[tuple[list[Case], Tensor, Tensor]]:
        """Yield cases, images (B, C, *S) and encoder inputs (B, C', *S); the last batch may be smaller."""
        for start in track(range(0, len(self.cases), batch_size), text):
            yield self.cases[start : start + batch_size], *self.batch(start, start + batch_size)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The images (B, C, *S) and encoder inputs (B, C', *S) of the cases from ``start`` to before ``stop``."""
        return self.stacked(range(start, min(stop, len(self.cases))))

    def stacked(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images (B, C, *S) and encoder inputs (B, C', *S) of the cases in these rows."""
        items = [self.dataset[i] for i in rows]
        images = torch.stack([item["image"] for item in items])
        if self.encoder_key == "image":
            return images, images
        return images, torch.stack([item[self.encoder_key] for item in items])


@dataclass(frozen=True)
class Session:
    """A trained bundle and a cohort as the bundle sees it."""

    trained: TrainedBundle
    cohort: SplitCohort  # the cohort, split, and sliced for a 2D model
    reading: Reading  # how scans are read
    run: Run  # batch size, device and overrides

    @classmethod
    def open(
        cls,
        bundle: PathLike,
        cohort: PathLike,
        *,
        decoding: Decoding | None = None,
        reading: Reading | None = None,
        run: Run | None = None,
    ) -> "Session":
        """Load a trained bundle and list a cohort."""
        run = run or Run()
        trained = open_bundle(bundle, decoding=decoding, run=run)
        return cls.of(trained, cohort, reading=reading or Reading(), run=run)

    @classmethod
    def of(cls, trained: TrainedBundle, cohort: PathLike, *, reading: Reading, run: Run) -> "Session":
        """List a cohort for a loaded bundle; the arguments and errors are those of :meth:`open`."""
        split = split_for(trained, cohort, reading.columns, run.overrides)
        _warn_of_other_field(trained, split)
        return cls(trained, split, reading, run)

    @property
    def encoder_key(self) -> str:
        """The image that the encoder sees."""
        return self.trained.encoder_key

    @property
    def _item_keys(self) -> list[str]:
        return list(dict.fromkeys([*self.trained.image_keys, self.encoder_key]))  # a transform may make the latter

    def open_cache(self, process: int = 0) -> ScanCache | None:
        """The preprocessed scans in ``cache_dir``, if it is given."""
        folder, made_from = self._cache()
        if folder is None or made_from is None:
            return None
        return ScanCache(folder, made_from, self._item_keys, process=process)

    def _cache(self) -> tuple[Path | None, dict[str, Any] | None]:
        """The folder of preprocessed scans, and what these are made from besides the scans, if it is given."""
        folder = self.reading.cache_dir
        if folder is None:
            return None, None
        if not folder.exists():
            logger.warning("cache_dir: %s is new; all scans are read and kept there", folder.name)
        return folder, made_by_preprocessing(self.trained.config)

    @property
    def encoder_sees_decoded_images(self) -> bool:
        """Whether the encoder can look at decoded images: not if it sees another file of the case."""
        return self.encoder_key == "image" or self.encoder_key not in self.trained.image_keys

    @property
    def may_hold_training_cases(self) -> bool:
        """Whether cases of ``val`` and ``test`` may have been trained on, because the split is not the training's."""
        return _is_drawn_again(self.trained, self.cohort)

    @property
    def can_fit_wide(self) -> bool:
        """Whether wide features may be fitted to this cohort, and can be stored for all who use the model."""
        is_of_training = _trained_on(self.trained) in (None, self.cohort.fingerprint)  # None: the model does not say
        can_write = os.access(layout.models_folder(self.trained.folder), os.W_OK)
        return is_of_training and can_write and not self.run.overrides  # which may change the images

    @property
    def split_origin(self) -> SplitOrigin:
        """Whether the cohort's split is that of the training, was given with the cohort, or was drawn at random."""
        if self.cohort.fingerprint == _trained_on(self.trained):
            return "training"
        return "drawn" if self.cohort.is_drawn else "given"

    def made_from(
        self, cases: Sequence[Case] | None = None, *, decodes: bool = True, uses_masks: bool = False, **more: Any
    ) -> dict[str, Any]:
        """What a result of this session depends on, for the record beside it."""
        made_from = {**made_from_bundle(self.trained, self.run, decodes=decodes), "cohort": self.cohort.fingerprint}
        if cases is not None:
            made_from["cases"] = json_digest([case.id for case in cases])
            made_from["scans"] = json_digest(scan_contents(cases))
            masks = [replace(case, images={"mask": case.mask}) for case in cases if case.mask and uses_masks]
            if masks:
                made_from["masks"] = json_digest([case.id for case in masks] + scan_contents(masks))
        return {**made_from, **more}

    def warn_if_unlike(self, z_sem: NDArray[np.floating[Any]]) -> None:
        """Log a warning if many z_sem (N, D) are far from those of the bundle's training, if these are known."""
        if num_unlike := count_unlike(self.trained.folder, z_sem):
            logger.warning(
                "%d of %d z_sem are unlike those of the training: these scans may be of another kind, orientation, "
                "field of view or intensity; compare them with monai-diffae reconstruct --mode z_sem",
                num_unlike,
                len(z_sem),
            )

    def choose(self, choice: Choice) -> list[Case]:
        """The selected cases: those with the given ids in their order, else the first ``limit`` of a split."""
        cases = self.cohort.choose(choice.cases, choice.split, choice.limit)
        if choice.split is not None and self.may_hold_training_cases and len(self.cohort.cases) > 1:
            logger.warning(
                "this is not the cohort of the training, so its split is drawn at random and does not say which cases "
                "the model was trained on; to evaluate the model, add a column split (test for new scans)"
            )
        choice.check({case.id: str(case.split) for case in cases})
        return cases

    def opened(
        self,
        cases: Sequence[Case],
        out: Path,
        text: str,
        failures_name: str = "failures.csv",
        *,
        named: bool = False,
        dicom: bool = False,
    ) -> OpenedCases:
        """Cases to open one after the other; the other arguments are those of :meth:`read`."""
        usable, unwritable = _writable(cases, dicom)
        failures = [*([] if named else self.cohort.failures), *unwritable]
        text = f"{text} {counted(len(usable), 'case')}"
        return OpenedCases(self.trained, usable, out / failures_name, text, failures)

    def read(
        self,
        cases: Sequence[Case],
        out: Path,
        failures_name: str = "failures.csv",
        *,
        named: bool = False,
        dicom: bool = False,
    ) -> ReadCases:
        """Read and preprocess cases. Unusable ones are listed in the file ``failures_name`` in ``out``.

        With ``dicom``, DICOM cases that cannot be written as new series are unusable, too.
        """
        (usable, unwritable), listed = _writable(cases, dicom), [] if named else self.cohort.failures
        folder, made_from = self._cache()
        dataset = CachedCases(
            [case.item() for case in usable],
            self.trained.preprocessing,
            cache_dir=folder or out,
            made_from=made_from,
            num_workers=self.reading.workers_for(len(cases)),
            keys=self._item_keys,
        )
        dataset.failures, dataset.failures_name = unwritable, failures_name
        try:
            dataset.prepare()
        finally:
            write_failures(out / failures_name, [*listed, *dataset.failures])
        by_id = {case.id: case for case in cases}
        readable = [by_id[str(item["id"])] for item in dataset.items]
        return ReadCases(readable, dataset, [*listed, *dataset.failures], self.encoder_key)

    def encode(self, read: ReadCases) -> NDArray[np.float32]:
        """z_sem (N, D) of all cases."""
        trained, text = self.trained, f"encoding {counted(len(read.cases), 'case')}"
        parts = [
            encode_exactly(encoder_images.to(trained.device), trained.network, trained.inferer).cpu().numpy()
            for _, _, encoder_images in read.batches(self.run.batch_size, text)
        ]
        return np.concatenate(parts)


def _writable(cases: Sequence[Case], dicom: bool) -> tuple[list[Case], list[Failure]]:
    """The cases; with ``dicom``, those that cannot be written as new series are failures."""
    unwritable = unwritable_series(cases) if dicom else []
    lost = {each.case_id for each in unwritable}
    return [case for case in cases if case.id not in lost], unwritable


def count_unlike(bundle: PathLike, z_sem: NDArray[np.floating[Any]]) -> int | None:
    """How many z_sem (N, D) are unlike those of a bundle's training, 0 if only few are; None if it is not known."""
    statistics = latent_statistics(bundle)
    if statistics is None or statistics.z_channels != z_sem.shape[1]:
        return None
    number = int((statistics.deviations(z_sem) > _UNLIKE).sum())
    return number if number > _MANY * len(z_sem) else 0


def open_bundle(bundle: PathLike, *, decoding: Decoding | Sampling | None = None, run: Run) -> TrainedBundle:
    """Load a trained bundle with a command's settings; for commands that can do without a cohort."""
    overrides = inferer_overrides(run.overrides, **asdict(decoding or Decoding()))
    return load_bundle(bundle, run.device, overrides)


def made_from_bundle(trained: TrainedBundle, run: Run, *, decodes: bool = True) -> dict[str, Any]:
    """What every result of a bundle depends on: the beginning of its record, with or without a cohort."""
    settings = inferer_settings(trained.inferer) if decodes else {}
    return {**trained.made_from, "overrides": dict(run.overrides), **settings}


def split_for(
    trained: TrainedBundle,
    cohort: PathLike,
    columns: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SplitCohort:
    """The cohort, split and sliced as the training of a bundle did it."""
    columns = columns or {}
    training = read_values(trained.folder / layout.CONFIGS / layout.TRAIN)  # names of columns are no part of a model
    named = {key: training[key] for key in ("columns", "patient_pattern") if key in training}
    given = {**trained.config, **(overrides or {})}
    values: dict[str, Any] = {
        **{key: value for key, value in named.items() if not is_formula(value)},
        **{key: given[key] for key in _COHORT_KEYS if key in given},
    }
    images = {key: given[key] for key in _IMAGE_KEYS if key in given}
    check_rules({**values, **images})
    values["images"] = ModelImages(**images)
    training_columns = {word: name for word, name in (values.get("columns") or {}).items() if word not in columns}
    values["columns"] = {**_columns_present(training_columns, Path(cohort)), **columns}
    return split_cohort(cohort, **values)


def _warn_of_other_field(trained: TrainedBundle, split: SplitCohort) -> None:
    """Log a warning if some scans, by their headers, are far from a 3D model's field of view; not if it knows them."""
    spacing_mm, cases = trained.config.get("spacing_mm"), split.cases
    if not spacing_mm or split.fingerprint == _trained_on(trained):
        return
    with suppress(CohortError):  # if none can be read, reading them says why
        fields = survey_cohort(cases[:: max(1, -(-len(cases) // _LOOKED_AT))], 3).fields_mm
        scan, model = np.median(fields, axis=0), np.multiply(spacing_mm, trained.config["image_size"])
        seen, filled = (np.minimum(1, ratio).prod() for ratio in (model / scan, scan / model))
        if min(seen, filled) < _LEAST_SHARE:
            scan_mm, model_mm = (" x ".join(f"{side:.0f}" for side in sides) for sides in (scan, model))
            logger.warning(
                "the scans measure %s mm (median), the model's field of view %s mm: %s; monai-diffae info says which "
                "scans the model is for",
                scan_mm,
                model_mm,
                f"it sees {seen:.0%} of a scan" if seen < filled else f"{1 - filled:.0%} of its images are padding",
            )


def _is_drawn_again(trained: TrainedBundle, split: SplitCohort) -> bool:
    trained_on = _trained_on(trained)
    return bool(split.is_drawn and trained_on and split.fingerprint != trained_on)


def _trained_on(trained: TrainedBundle) -> str | None:
    """The fingerprint of the cohort of the training; None if it was not recorded."""
    return cast("str | None", trained.config.get("data", {}).get("fingerprint"))


def _columns_present(columns: Mapping[str, str], cohort: Path) -> dict[str, str]:
    """The training table's column names, without those that this table has under the standard name only."""
    named = {word: name for word, name in columns.items() if word != name}
    if not named or cohort.suffix.lower() not in (".csv", ".tsv", ".json") or not cohort.is_file():
        return named
    header = column_names(cohort)
    lacking = [word for word, name in named.items() if word not in header and name not in header]
    if lacking and cohort.suffix.lower() != ".json":
        word = lacking[0]
        has = textwrap.shorten(", ".join(header), 80, placeholder=" ...")
        otherwise = f", or add an empty column {word}" if word in COLUMN_ROLES else ""
        raise CohortError(
            f'{cohort.name}: no column "{named[word]}", which was {word} in the bundle\'s training (has {has}); '
            f"name this table's column with --columns {word}=...{otherwise}"
        )
    return {word: name for word, name in named.items() if name in header or word not in header}
