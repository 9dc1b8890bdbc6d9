"""The command ``train``: train a bundle, as ``python -m monai.bundle run`` does; also inside another program."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt, Le

from monai_diffae import engines
from monai_diffae.apps.command import command, config_file, refuse_results_among_scans
from monai_diffae.apps.commands import command_line
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Key, Training, this_process
from monai_diffae.bundle import layout
from monai_diffae.bundle.code import check_code
from monai_diffae.bundle.folders import check_no_other_model, init_bundle, names_with_weights
from monai_diffae.bundle.model_file import checksum, read_description
from monai_diffae.data.progress import count_failures
from monai_diffae.errors import ConfigError, counted, find_diffae_error
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import PathLike

with on_first_use:
    from monai_diffae.apps.training import speed as speeds
    from monai_diffae.bundle import description as descriptions
    from monai_diffae.bundle import parser as parsing
    from monai_diffae.data import cohorts, tensor_files
    from monai_diffae.data.inspection import survey as surveys

if TYPE_CHECKING:
    import threading

    from monai.bundle import ConfigWorkflow

    from monai_diffae.handlers.progress import Statistics

logger = logging.getLogger(__name__)

_MOST_FAILED = 0.1  # of the cases of a training
_LEAST_USED, _PLANNED, _LARGEST_DECAY = 0.7, 0.95, 0.999  # shares of the time: if less is used, this much is planned


@command
def train(
    bundle: Path,
    cohort: Path | None = None,
    out: Path | None = None,
    *,
    start_from: Path | None = None,
    minutes: Annotated[float, Gt(0), Le(100_000)] | None = None,
    training: Training = Training(),
    **keys: Key,
) -> Result:
    """Train a bundle's autoencoder on a cohort, fine-tune its weights, or resume its training after an interruption.

    The same run as ``python -m monai.bundle run training --config_file my_bundle/configs/train.json --dataset_dir
    scans.csv``. When it begins, it writes its values into ``configs/train.json``, so that the same command resumes it
    without its options. The folder ``models`` gets the model (``model.safetensors``), its weights for MONAI's tools
    (``model.pt``) and a checkpoint; ``curves.csv``, ``curves.png`` and ``pictures`` show the progress.

    A bundle that has weights but no checkpoint, such as ``chest_xray`` or one that ``pull`` got, is fine-tuned: a new
    training begins with its weights, and replaces them at its first save. To keep them, train a copy: ``start_from``.

    Args:
        bundle: Folder of a bundle. If it does not exist, it is made from ``diffae_3d`` for volumes, else ``diffae_2d``,
            with the overlay ``words`` unless others are given: half of z_sem also learns typical patches.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan; by default the ``dataset_dir`` of the configuration.
        out: Folder for the trained bundle; by default the bundle's own.
        start_from: Trained bundle with whose weights a new training begins, on any cohort: the folder is made from it,
            as by ``monai-diffae init``. It is only read.
        minutes: Time for everything: image size, network and epochs are chosen as by ``monai-diffae plan``, and the
            training ends in time; it gets more epochs if it is faster than was measured. By default, as configured.
        keys: Any keys of the bundle's configuration, e.g. ``--max_epochs 20 --image_size [96,96]``.

    Returns:
        The folder of the trained bundle and the number of cases that could not be used.

    Raises:
        ConfigError: the bundle or an overlay does not exist, a key or value of the configuration cannot be used, the
            training is complete already, or ``start_from`` is not trained.
        CohortError: no usable case.
        MachineError: the training does not fit into memory, or the disk is full.
    """
    training = training.with_keys(keys)
    start = time.monotonic()
    if start_from is not None:
        bundle, out = begin_from(out or bundle, start_from), None
    elif cohort is not None and not bundle.exists() and (out is None or not out.exists()):
        training = _make_bundle(bundle, cohort, training)
    is_fixed = not training.overrides.keys().isdisjoint(("max_epochs", "max_minutes", "ema_decay"))
    if minutes is not None:
        training = _plan(bundle, cohort, out, training, minutes, start)
    paths = {"dataset_dir": cohort, "output_dir": out}
    workflow = run_training("train", bundle, training, paths)
    while minutes and not is_fixed and (longer := _lengthen(workflow, training, minutes, start)):
        training = longer
        workflow = run_training("train", bundle, training, paths)
    parser, folder = workflow.parser, results_folder(workflow)
    split_cohort = parser.get_parsed_content("cohort")
    num_cases = sum(len(split_cohort.split(name)) for name in ("train", "val")) + len(split_cohort.failures)
    data = parser.get_parsed_content("dataset_dir")
    if "inferer" in parser:
        next_line = command_line("embed", {"bundle": folder, "cohort": data, "out": "results"})
    else:  # it is a first stage
        overlays = ["my_model/configs/overlays/latent_space.json"]
        latent = {"overlays": overlays, "overrides": {"first_stage_bundle": str(folder)}}
        next_line = command_line("train", {"bundle": "my_model", "cohort": data, **latent})
    failures = folder / "failures.csv"
    return training_result(folder, failures, count_failures(failures), num_cases, next_line, training.strict)


def training_result(
    folder: Path, failures: Path, num_failed: int, num_cases: int, next_line: str, is_strict: bool
) -> Result:
    """The result of a training, which is incomplete if too many cases failed: with ``is_strict`` any, else 10 %."""
    line = f"{num_failed} of {counted(num_cases, 'case')} could not be used: see {failures.relative_to(folder)}"
    is_incomplete = num_failed > (0 if is_strict else _MOST_FAILED * num_cases)
    return Result(
        folder,
        {"num_cases": num_cases, "num_failed": num_failed},
        notes=[line] if num_failed and not is_incomplete else [],
        incomplete=line if is_incomplete else None,
        next=[f"next: {next_line}"],
        content={"failures": failures},
    )


# -- inside another program --------------------------------------------------------------------------------------------


def train_with_callbacks(
    bundle: PathLike,
    cohort: PathLike | None = None,
    out: PathLike | None = None,
    *,
    start_from: PathLike | None = None,
    training: Training = Training(),
    stop: threading.Event | None = None,
    report: Callable[[Statistics], object] | None = None,
) -> Result:
    """Train a bundle as :func:`monai_diffae.train` does, inside a program that continues afterwards.

    It can run in any thread. In the main thread, SIGTERM and Ctrl-C save a checkpoint and then raise ``SystemExit``.
    The random numbers are those of torch's global generator, as in every training: if another thread draws from that
    generator meanwhile, the weights are not reproducible to the bit.

    Args:
        bundle: folder of a bundle.
        cohort: the data; None: the ``dataset_dir`` of the configuration.
        out: folder for the trained bundle; None: the bundle's own.
        start_from: trained bundle with whose weights a new training begins; the folder is made from it.
        training: how to train.
        stop: if it is set, the training saves a checkpoint at the next step and ends. While scans are read, it waits
            until they are read.
        report: called with its :class:`~monai_diffae.handlers.progress.Statistics` from the training's thread every
            ``report_every`` steps and at the end of each epoch; its errors end the training.

    Returns:
        The folder, and ``is_stopped``: whether the training was stopped; the same call resumes it.

    Raises:
        DiffAEError: as ``train``.
    """
    from monai_diffae.handlers.checkpoint import TrainingStopped

    def notify(engine: Any) -> None:
        if report is not None:
            report(engine.state.statistics)

    def prepare(workflow: ConfigWorkflow) -> None:
        folders.append(results_folder(workflow))
        workflow.parser.get_parsed_content("train#checkpoint").stop_requests.event = stop
        workflow.parser.get_parsed_content("train#trainer").add_event_handler(engines.TrainingEvents.STATISTICS, notify)

    folders: list[Path] = []
    if start_from is not None:
        bundle, out = begin_from(Path(out or bundle), Path(start_from)), None
    given = {"dataset_dir": cohort, "output_dir": out}
    paths = {key: None if path is None else Path(path) for key, path in given.items()}
    try:
        run_training("train", Path(bundle), training, paths, prepare=prepare)
    except TrainingStopped:
        return Result(folders[0], {"is_stopped": True})
    return Result(folders[0], {"is_stopped": False})


# -- the run of a configuration ----------------------------------------------------------------------------------------


def run_training(
    config: str,
    bundle: Path,
    training: Training,
    paths: Mapping[str, Path | None],
    *,
    values: Mapping[str, Any] | None = None,
    prepare: Callable[[ConfigWorkflow], object] | None = None,
) -> ConfigWorkflow:
    """Run one of a bundle's training configurations; ``prepare`` is called with the run before it trains."""
    out = paths.get("output_dir")
    named = {key: None if path is None else str(path) for key, path in paths.items()}
    given = {key: value for key, value in {**(values or {}), **named}.items() if value is not None}
    given |= training.values()
    if out is not None and not training.overwrite and _has_values(config, bundle, out):
        _warn_of_other_values(config, bundle, out, given)
        bundle = out
    file = config_file(bundle, config, training.overlays)
    workflow = open_training(file, training.overlays, {"bundle_root": str(bundle), **given})
    try:
        workflow.initialize()
        if prepare is not None:
            prepare(workflow)
        workflow._run_expr(id=workflow.run_id)  # MONAI (1.6.1)'s run() lets imports find modules in the bundle's folder
        workflow.finalize()
    except Exception as error:
        cause = find_diffae_error(error)
        if cause is None or cause is error:
            raise
        raise cause from error
    return workflow


def results_folder(workflow: ConfigWorkflow) -> Path:
    """The folder of a training's results."""
    return Path(str(workflow.parser.get_parsed_content("output_dir")))


def open_training(file: Path, overlays: Sequence[Path], values: Mapping[str, Any]) -> ConfigWorkflow:
    """Read the configuration of a training: a value is taken from ``values``, the overlays, or the bundle's file."""
    from monai.bundle import ConfigWorkflow

    from monai_diffae.bundle.training import drop_repetition

    parsing.read_config(file, *overlays)  # checks their code
    check_code(values, "overrides", places=False)
    # MONAI warns about each overlay from another folder, and about the lack of a logging file
    log = logging.getLogger("monai.bundle.workflows")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        workflow = ConfigWorkflow(list(map(str, (file, *overlays))), logging_file=False, workflow_type="train")
    finally:
        log.setLevel(level)
    workflow.parser.locator = parsing.ModuleLocator()
    drop_repetition(workflow.parser, "initialize")  # here, as MONAI goes through it by its length when it runs
    # not as keyword arguments of ConfigWorkflow: its `tracking` (MONAI 1.6.1) is not our key
    parsing.set_values(workflow.parser, values, "the configuration", f"configs/{file.name}")
    return workflow


def _has_values(config: str, bundle: Path, out: Path) -> bool:
    """Whether the configuration of the folder for the results has the values with which its training began."""
    has_model = (out / "models" / "model.safetensors").is_file()
    if config != "train":  # it has the bundle's model, too
        check_no_other_model(bundle, out)
    return (out / "configs" / f"{config}.json").is_file() and (config == "train" or has_model)


def begin_from(folder: Path, start_from: Path) -> Path:
    """Make a bundle with the weights of a trained one to fine-tune them; a training that did so is resumed."""
    weights, checkpoint = checksum(start_from), folder / "models" / "checkpoint.pt"
    if layout.model_file(start_from).resolve() == (folder / "models" / "model.safetensors").resolve():
        raise ConfigError(f"start_from: {folder.name} is the folder that is trained; choose a new folder, or omit it")
    if not folder.exists() or not any(folder.iterdir()):
        return init_bundle(folder, start_from)
    if checkpoint.is_file():
        read = tensor_files.read_torch_file(checkpoint, "cannot be read as a checkpoint", prefix="started_from")
        begun = read.get("started_from")
    else:
        begun = checksum(folder)
    if begun != weights:
        raise ConfigError(
            f"{folder.name}: exists, and was not made from {start_from.name}; choose a new folder, or omit start_from"
        )
    return folder


def _warn_of_other_values(config: str, bundle: Path, out: Path, given: Mapping[str, Any]) -> None:
    """Log in what a training that is resumed in another folder differs from the bundle that was named."""
    files = [folder / "configs" / f"{config}.json" for folder in (bundle, out)]
    if files[0].is_file():
        first, second = (json.loads(file.read_text(encoding="utf-8")) for file in files)
        differ = [key for key in first if second.get(key) != first[key] and key not in given]
        if differ:
            logger.warning(
                "%s: is trained with its own values of %s, not those of %s; set overwrite to begin again with these",
                out.name,
                ", ".join(differ),
                bundle.name,
            )


# -- train --minutes ---------------------------------------------------------------------------------------------------


def _plan(
    bundle: Path, cohort: Path | None, out: Path | None, training: Training, minutes: float, start: float
) -> Training:
    """Add a plan's settings to those of a new training; ``minutes`` are for everything from ``start`` on."""
    from monai_diffae.apps.training.plan import plan, read_training_config

    config_file(bundle, "train")
    folder = Path(training.overrides.get("output_dir", out or bundle))
    if (folder / layout.MODELS / layout.CHECKPOINT).is_file() and not training.overwrite:
        logger.info("the training continues with the plan that it began with")
        return training
    parser = read_training_config(bundle, training.overlays)
    if cohort is None and parser.get("dataset_dir") == "???":
        raise ConfigError("cohort: is required, as the bundle's configuration names none; give it a value")
    weights = folder / layout.MODELS / layout.MODEL
    is_tuned = weights.is_file() and not training.overwrite
    model = {key: each for key, each in read_description(weights).items() if key in parser} if is_tuned else {}
    fixed = {key: value for key, value in model.items() if key not in speeds.TIME_KEYS and not isinstance(value, dict)}
    named = {"batch_size": training.batch_size, "uneven": training.uneven}
    given = {key: value for key, value in named.items() if value is not None}
    result = plan(
        cohort or parser.get_parsed_content("dataset_dir"),
        bundle=bundle,
        minutes=minutes,
        device=training.device,
        overlays=training.overlays,
        columns=training.columns,
        sequences=training.sequences,
        colour=training.colour,
        overrides={**fixed, **given, **training.overrides},
    ).plan
    result = replace(result, budget_s=60 * minutes - (time.monotonic() - start))
    new = {key: value for key, value in result.settings.items() if key not in fixed}
    for line in (*(f"{key}: {value}" for key, value in new.items()), *result.time_lines()):
        logger.info("%s", line)
    return replace(training, overrides={**new, **training.overrides})


def _lengthen(workflow: ConfigWorkflow, training: Training, minutes: float, start: float) -> Training | None:
    """More epochs for a training that used little of its time, because the machine was busy when it was measured."""
    read = workflow.parser.get_parsed_content
    validation, before = read("validate#handler"), read("max_epochs")
    others_s = time.monotonic() - start - validation.seconds  # such as reading and calibration, which are done again
    available_s = 60 * minutes - 2 * others_s
    factor = _PLANNED * available_s / validation.seconds
    is_used = validation.seconds > _LEAST_USED * available_s or int(factor * before) == before
    was_resumed, has_others = others_s < 0, this_process().world_size > 1
    if is_used or was_resumed or has_others or validation.is_patience_exhausted:
        return None
    decay = max(read("ema_decay"), min(_LARGEST_DECAY, round(1 - (1 - read("ema_decay")) / factor, 4)))
    settings = {"max_epochs": int(factor * before), "max_minutes": round(available_s / 60, 2), "ema_decay": decay}
    logger.info("training was faster than measured: it gets %d epochs, not %d", settings["max_epochs"], before)
    return replace(training, overwrite=False, overrides={**training.overrides, **settings})


def _make_bundle(folder: Path, cohort: Path, training: Training) -> Training:
    """Copy the shipped bundle that fits most scans; without overlays with ``words``, and colour becomes grey."""
    if str(folder) in names_with_weights():
        config_file(folder, "train")  # whoever names a shipped model does not want a new one
    refuse_results_among_scans(cohort, bundle=folder)
    cases = cohorts.read_cohort(cohort, columns=training.columns)
    name = f"diffae_{surveys.survey_cohort(cases).spatial_dims}d"
    init_bundle(folder, name)
    if not training.overlays:  # they choose the recipe
        recipe = folder / layout.CONFIGS / layout.TRAIN
        descriptions.write_config(recipe, parsing.read_config(recipe, layout.overlay(folder, "words.json")).get())
        name += " with words.json, so that z_sem predicts more"
    logger.info("%s: a new bundle, made from %s", folder.name, name)
    is_chosen = training.colour is not None or not training.overrides.keys().isdisjoint(("colour", "in_channels"))
    if is_chosen or not surveys.look_at(cases, limit=32).colour:
        return training
    logger.info("colour images are converted to grey; --colour rgb would keep their colours")
    return replace(training, colour="grey")
