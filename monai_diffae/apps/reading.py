"""A cohort as a trained bundle sees it, and what the commands that read one have in common."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from monai_diffae.apps.bundles import TrainedBundle, load_bundle
from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure, write_failures
from monai_diffae.data.split_cohort import SplitCohort, split_cohort
from monai_diffae.data.tables import WORDS, column_names
from monai_diffae.diffusion import SOLVERS, Solver, Spacing
from monai_diffae.engines.config_values import check_device
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer, Inversion

logger = logging.getLogger(__name__)

T = TypeVar("T")

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


def open_bundle(
    directory: str | os.PathLike[str],
    device: str | torch.device | None,
    overrides: Mapping[str, Any] | None = None,
) -> TrainedBundle:
    """:func:`~monai_diffae.apps.bundles.load_bundle`, with one line for a device that is not there.

    Raises:
        ConfigError: no trained bundle, no such kind of device, or the device among the overrides.
        MachineError: the device is not there.
    """
    if "device" in (overrides or {}):
        raise ConfigError("device: this is no key of the model's config; say --device")
    if device is not None:
        check_device(device)
    return load_bundle(Path(directory), device, **(overrides or {}))


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


def checksum(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of a bundle's weights; a first stage of other weights than the model's own does not load."""
    path = Path(directory) / "models" / "model.pt"
    if not path.is_file():
        raise ConfigError(f"{Path(directory).name}: there is no models/model.pt; train the bundle first")
    state = path.stat()
    return _checksum_in_state(path.resolve(), state.st_mtime_ns, state.st_size)


@functools.lru_cache
def _checksum_in_state(path: Path, changed: int, size: int) -> str:
    return file_checksum(path)  # once in a command, though several parts of it ask


def config_checksum(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of what describes a bundle's model: ``models/config.json``, or without it ``configs/train.json``."""
    ran = Path(directory) / "models" / "config.json"
    return file_checksum(ran if ran.is_file() else Path(directory) / "configs" / "train.json")


def file_checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as stream:
        digest = hashlib.sha256()
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def shown(items: Sequence[T], text: str) -> Iterator[T]:
    """The items, with a bar on a terminal (while INFO is logged), with a line in the log elsewhere."""
    if not logger.isEnabledFor(logging.INFO) or not sys.stderr.isatty() or len(items) < 2:
        logger.info("%s", text)
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=text, console=Console(stderr=True), transient=True)


def inferer_overrides(
    overrides: Mapping[str, Any] | None, steps: int | None, invert_steps: int | None = None, **names: str | None
) -> dict[str, Any]:
    """The overrides of a bundle's config, with what was said in words of its own.

    Args:
        overrides: ids of the config and their values.
        steps: network evaluations for decoding.
        invert_steps: network evaluations for inversion; None: those that go with ``steps``, where that is given.
        names: the inferer's ``solver``, ``inversion`` and ``spacing``; None: the bundle's.

    Raises:
        ConfigError: no such solver, inversion or spacing.

    Example:
        >>> inferer_overrides({}, 50, solver="unipc")
        {'inferer#invert_steps': None, 'inferer#num_steps': 50, 'inferer#solver': 'unipc'}
    """
    choices = {"solver": SOLVERS, "inversion": get_args(Inversion), "spacing": get_args(Spacing)}
    for key, name in names.items():
        if name is not None and name not in choices[key]:
            raise ConfigError(f"{key} is {name!r}; choose one of: {', '.join(choices[key])}")
    values = {"num_steps": steps, "invert_steps": invert_steps, **names}
    said = {f"inferer#{key}": value for key, value in values.items() if value is not None}
    # those that go with ``steps``, not the bundle's
    default = {} if steps is None else {"inferer#invert_steps": None}
    return {**default, **(overrides or {}), **said}


def inferer_settings(inferer: DiffusionAutoencoderInferer) -> dict[str, Any]:
    """How an inferer decodes and inverts, as plain values: what it does, whoever said so.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> settings = inferer_settings(DiffusionAutoencoderInferer(DiffusionSchedule(), solver="euler", num_steps=5))
        >>> settings["solver"], settings["steps"], settings["invert_steps"], settings["spacing"]
        ('ddim', 5, 5, 'logsnr')
    """
    return {
        "solver": _solver_name(inferer.solver),
        "steps": inferer.num_steps,
        "invert_steps": inferer.invert_steps,
        "inversion": inferer.inversion,
        "spacing": inferer.spacing or inferer.schedule.spacing,
        "clip_range": None if inferer.clip_range is None else list(inferer.clip_range),
    }


def _solver_name(solver: Solver | functools.partial[Tensor]) -> str:
    """``unipc``, or ``unipc(order=2)`` of a functools.partial; a config can give any callable."""
    if isinstance(solver, functools.partial):
        options = ", ".join(f"{name}={value}" for name, value in solver.keywords.items())
        return f"{_solver_name(solver.func)}({options})"
    return str(getattr(solver, "__name__", type(solver).__name__))


def bundle_summary(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What a trained bundle is, for people and as JSON.

    Raises:
        ConfigError: it is not trained.
    """
    digest = checksum(directory)
    trained = load_bundle(Path(directory), "cpu")
    settings = inferer_settings(trained.inferer)
    keys = ("spatial_dims", "in_channels", "image_size", "image_keys", "intensity", "model_range")
    return {
        **{key: trained.config[key] for key in keys if key in trained.config},
        "parameters": sum(p.numel() for p in trained.network.parameters()),
        "decoding_steps": settings["steps"],
        "inversion_steps": settings["invert_steps"],
        "solver": settings["solver"],
        "sha256": digest,
    }
