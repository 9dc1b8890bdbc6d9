"""What a training needs from its bundle: the running configuration, its checks, and what it trains."""

import inspect
import json
import logging
import math
import shutil
import statistics
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from torch import nn

from monai_diffae.bundle.code import trusting
from monai_diffae.bundle.config import (
    MODEL_ROOTS,
    OF_ONE_SPLIT,
    check_config_of_run,
    check_image_size,
    check_required_values,
    is_formula,
    model_config,
    references,
    sequence_values,
    without_effect,
)
from monai_diffae.bundle.description import (
    describe,
    describe_training,
    evaluated,
    made_by_preprocessing,
    versions,
    write_values,
)
from monai_diffae.bundle.first_stages import PREPARATION
from monai_diffae.bundle.folders import complete_bundle
from monai_diffae.bundle.layout import CONFIGS, MODEL, MODELS, MONAI_MODEL, TRAIN
from monai_diffae.bundle.loading import weights_sha256
from monai_diffae.bundle.model_file import built_part, check_fit, check_writable, read_description, unknown_targets
from monai_diffae.data.cases import spread
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.streamed import read_stream
from monai_diffae.data.tensor_files import read_torch_file
from monai_diffae.engines.memory import Workload, check_memory
from monai_diffae.errors import CohortError, ConfigError, counted, find_diffae_error
from monai_diffae.metrics import reconstruction_errors
from monai_diffae.networks import FirstStage

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_DIGITS = 16  # of the hash of each scan that a checkpoint keeps
_AGAIN = "choose another output_dir, or set overwrite to start again"
_EXTENDED = (
    "imports",
    "train#handlers",
    "validate#handlers",
    "preprocessing#transforms",
    "augmentation#transforms",
    "training",
)
_TRAIN, _VAL = "train#dataset#data", "validate#dataset#data"
_FITTED, _LEAST_SSIM = 8, 0.8  # images on which a first stage is measured, and the SSIM of usable reconstructions
_OF_THE_WEIGHTS = ("network_def", "preprocessing", "encoder_key", "diffusion", "first_stage", "first_stage_sha256")
_LATENT_ROOTS = ("latent_network_def", "latent_inferer")


# -- the running configuration -----------------------------------------------------------------------------------------


def running_parser() -> ConfigParser:
    """The parser of the bundle run that evaluates the calling expression."""
    return cast(ConfigParser, _on_call_stack(ConfigParser))


def running_config() -> dict[str, Any]:
    """The configuration of the bundle run that evaluates the calling expression, with all overrides, not evaluated."""
    return dict(deepcopy(running_parser().get()))


def _on_call_stack(kind: type[_T]) -> _T | None:
    """The innermost object of this type whose method is running: MONAI (1.6.1) gives expressions no other access."""
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), kind):
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]


def check_run(file: str = TRAIN) -> None:
    """Check a run's configuration before anything is built, as the first expression of ``initialize``.

    ``bundle_root`` becomes the folder of the configuration if it is ``.``, which MONAI (1.6.1) takes for the current
    directory. MONAI's option ``--tracking mlflow`` turns on the bundle's own tracking, and lists of images, which MONAI
    Label gives to ``train.json``, become the cohort. With ``--trust True``, the run's expressions are evaluated within
    :func:`trusting`. Only the values that the network needs have to be given: MONAI's tools build it without data.
    :func:`check_all_set` checks the others when the run starts.
    """
    _show_errors_as_one_line()
    parser, workflow = running_parser(), _on_call_stack(ConfigWorkflow)
    if _is_trust_given():
        parser.get_parsed_content = trusting()(parser.get_parsed_content)  # type: ignore[method-assign]
    if workflow is not None and parser.get("bundle_root") == "." and workflow.config_root_path.name == CONFIGS:
        parser["bundle_root"] = str(workflow.config_root_path.parent)
    _use_own_tracking(parser)
    for id in _EXTENDED:
        drop_repetition(parser, id)
    if file == TRAIN:
        _use_given_images(parser)
        encoder_sequences = parser.get("encoder_sequences", [])
        if encoder_sequences and "in_channels" not in parser["network_def"]["encoder"]:
            raise ConfigError("encoder_sequences: this encoder sees what the decoder makes; omit them, or the overlay")
        sequences, channels = parser.get("sequences", []), parser.get("in_channels")
        if sequences and channels not in (1, len(sequences)):
            raise ConfigError(f"in_channels: is {channels}, not the number of sequences, {len(sequences)}; omit it")
        parser.update(sequence_values(sequences, encoder_sequences))
    check_config_of_run(parser.get())
    for key in without_effect(parser.get(), workflow.run_id) if workflow else ():
        logger.warning("%s: has no effect on this run, as nothing in it uses %s", key, key)


def _is_trust_given() -> bool:
    """Whether MONAI's ``run`` got ``--trust True``; in a bundle's own file, the key has no effect."""
    frames = (each.frame for each in inspect.stack(0) if each.frame.f_code is create_workflow.__code__)
    return any(frame.f_locals.get("kwargs", {}).get("trust") is True for frame in frames)


def drop_repetition(parser: ConfigParser, id: str) -> None:
    """Remove the end of a configuration's list if it only repeats what is before it."""
    items = parser.get(id)
    # a training writes what an overlay added into train.json; if the same command resumes it, the overlay adds it again
    for count in range(1, len(items) // 2 + 1) if isinstance(items, list) else ():
        if items[-count:] == items[-2 * count : -count]:
            del items[-count:]
            log = logger.debug if id == "imports" else logger.warning
            log("%s: the last entries are there twice, as if by an overlay, and count once", id)
            return


def check_all_set() -> None:
    """Check that the running configuration has all values that it needs, when its run starts.

    Changes of keys that this run does not use are refused, except in a training.
    """
    config, workflow = running_config(), _on_call_stack(ConfigWorkflow)
    check_required_values(config)
    if workflow and "train" not in config and (keys := without_effect(config, workflow.run_id)):
        raise ConfigError(f"{keys[0]}: has no effect on this run; omit it")


def _show_errors_as_one_line() -> None:
    """In ``python -m monai.bundle``, show this package's errors as one line without a traceback."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None or spec.name != "monai.bundle.__main__":
        return

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if known := find_diffae_error(error):
            print(f"error: {known.on_terminal()}", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = show


def _use_own_tracking(parser: ConfigParser) -> None:
    """Replace the handlers of MONAI's ``--tracking mlflow`` by the bundle's own tracking."""
    # MONAI's (1.6.1) adds to a run of another training that crashed, and ends the training if the server fails
    defaults: dict[str, Any] = DEFAULT_MLFLOW_SETTINGS["configs"]  # type: ignore[assignment]
    for section, engine in (("train#handlers", "trainer"), ("validate#handlers", "validator")):
        handlers = parser.get(section)
        if "mlflow" in parser and isinstance(handlers, list) and defaults[engine] in handlers:
            parser[section] = [handler for handler in handlers if handler != defaults[engine]]
            parser["mlflow"] = True


# -- images that MONAI Label lists -------------------------------------------------------------------------------------


def _use_given_images(parser: ConfigParser) -> None:
    """Train on exactly the images of ``train#dataset#data`` and ``validate#dataset#data``, if they are lists."""
    # MONAI Label (0.8.5) puts such lists and a CheckpointLoader into train.json. They become the cohort, so that its
    # fingerprint is that of the images seen, and volumes are cut into slices. With the loader, weights are fine-tuned.
    lists = {id: parser.get(id) for id in (_TRAIN, _VAL)}
    if all(is_formula(data) for data in lists.values()):
        return
    for id, data in lists.items():
        if is_formula(data) or not data:
            raise CohortError(f"{id}: there is no image; in MONAI Label, label more, or set another val_split above 0")
    config: dict[str, Any] = parser.get()
    original = json.loads((Path(str(config["bundle_root"])) / CONFIGS / TRAIN).read_text(encoding="utf-8"))
    handlers = parser.get("train#handlers")
    loaders = [handler for handler in handlers if handler.get("_target_") == "CheckpointLoader"]
    max_epochs = parser.get("train#trainer#max_epochs")
    parser[_TRAIN], parser[_VAL] = (original[section]["dataset"]["data"] for section in ("train", "validate"))
    parser["train#handlers"] = [handler for handler in handlers if handler not in loaders]
    parser["dataset_dir"], parser["columns"] = str(_datalist(parser, lists, config)), {}
    if not is_formula(max_epochs):
        parser["max_epochs"], parser["train#trainer#max_epochs"] = max_epochs, "@max_epochs"
    for loader in loaders:
        given = Path(str(loader["load_path"]))
        if given.resolve() != (Path(str(config["bundle_root"])) / MODELS / MONAI_MODEL).resolve():
            raise ConfigError(f"{given.name}: training can begin only with model.pt; set model_filename to model.pt")
        parser["fine_tune"] = True


def _datalist(parser: object, lists: Mapping[str, Sequence[Mapping[str, Any]]], config: Mapping[str, Any]) -> Path:
    """Write a MONAI datalist of the images, which exists as long as the run."""
    keys = list(config["image_keys"])
    train, val = ([{key: item.get(key) for key in keys} for item in lists[id]] for id in (_TRAIN, _VAL))
    folder = Path(tempfile.mkdtemp(prefix="diffae-data-"))
    weakref.finalize(parser, shutil.rmtree, folder, ignore_errors=True)
    file = folder / "given_images.json"
    file.write_text(json.dumps([*train, *val]))  # without splits, as a patient who is in both would be an error
    cases = read_cohort(file, image_keys=keys, patient_pattern=config.get("patient_pattern"))
    trained = {case.patient for case in cases[: len(train)]}
    kept = [entry for entry, case in zip(val, cases[len(train) :], strict=True) if case.patient not in trained]
    if not kept:
        raise CohortError(f"{_VAL}: all of its patients are also trained on; give images of other patients")
    if len(kept) < len(val):
        text = "%d of %d images are not used for validation, as their patients are also trained on"
        logger.warning(text, len(val) - len(kept), len(val))
    file.write_text(json.dumps({"training": train, "validation": kept}))
    return file


# -- what is trained ---------------------------------------------------------------------------------------------------


def describe_model(first_stage: FirstStage | None = None) -> dict[str, Any]:
    """The description of the autoencoder or first stage that the running configuration trains."""
    parser = running_parser()
    description = {**describe(parser, MODEL_ROOTS), "recipe": describe_training(parser), "versions": versions()}
    if first_stage is not None:
        trained_on = first_stage.description
        differ = [key for key in PREPARATION if key in trained_on and trained_on[key] != description.get(key)]
        if differ:
            logger.warning("the first stage was trained with other values of %s than this model", ", ".join(differ))
        description["first_stage"] = trained_on["network_def"]
        description["first_stage_sha256"] = trained_on["weights_sha256"]
    check_writable(description)  # now, not when the first epoch ends
    if own_code := unknown_targets(description):
        used = ", ".join(own_code)
        logger.warning("to use the trained model, each run needs --trust (in MONAI's --trust True): it uses %s", used)
    return description


def fit_first_stage(first_stage: FirstStage) -> None:
    """Measure the scale of another's first stage on training images, and log how well it reconstructs them.

    Its reconstructions get the range of the images. Does nothing if the scale is known, or without a cohort.

    Raises:
        CohortError: no training image can be read.
    """
    parser = running_parser()
    if not first_stage.latent_std.isnan() or parser["dataset_dir"] == "???":
        return
    if "num_rounds" in parser:
        raise ConfigError("first_stage: each site would measure another scale of its latents; train autoencoder_kl_3d")
    parts = ("train#dataset#data", "train#preprocessing", "model_range")  # the dataset can be one of MONAI's
    data, preprocessing, (low, high) = map(parser.get_parsed_content, parts)
    first_stage.image_range = low, high
    first_stage.description["network_def"]["image_range"] = [low, high]
    order = dict.fromkeys([*spread(len(data), _FITTED), *range(len(data))])
    results = read_stream([data[position] for position in order], preprocessing, ["image"])
    arrays = islice((result["image"] for result in results if isinstance(result, dict)), _FITTED)
    images = [torch.from_numpy(array).to(first_stage.latent_std.device) for array in arrays]
    if not images:
        raise CohortError("first_stage: no training image can be read to measure its latents; check dataset_dir")
    first_stage.measure(images)
    first_stage.description["weights_sha256"] = weights_sha256(first_stage)
    errors = [reconstruction_errors(image[None], first_stage(image[None]), (low, high)) for image in images]
    ssim = statistics.fmean(float(error["ssim"]) for error in errors)
    logger.info("the first stage reconstructs %s with SSIM %.2f", counted(len(images), "training image"), ssim)
    if ssim < _LEAST_SSIM:
        logger.warning(
            "the first stage does not fit these images (SSIM %.2f, below %.1f): set %s to the values with which it was "
            "trained, or train a first stage on these images",
            ssim,
            _LEAST_SSIM,
            ", ".join(PREPARATION),
        )


def describe_preprocessing() -> dict[str, Any]:
    """What the images depend on, besides the scans, that the running configuration's preprocessing makes."""
    parser = running_parser()
    described = made_by_preprocessing(describe(parser, ("preprocessing",)))
    own = {id: parser.get(id) for id in OF_ONE_SPLIT if parser.get(id) != "@preprocessing"}
    roots = tuple(references(own))
    used = model_config(describe(parser, roots), roots)
    return {**described, **used, **{id: evaluated(parser, value, id) for id, value in own.items()}}


def describe_latent(z_channels: int, autoencoder_sha256: str) -> dict[str, Any]:
    """The description of the latent DDIM that the running configuration trains, and the autoencoder it belongs to."""
    described = describe(running_parser(), _LATENT_ROOTS)
    described.pop("frozen", None)
    return {**described, "z_channels": z_channels, "autoencoder_sha256": autoencoder_sha256, "versions": versions()}


@dataclass(frozen=True)
class TrainingDescription:
    """What a training trains, for its files and its checkpoint; a resumed run must describe the same."""

    model: dict[str, Any]  #: the description that is written into the model's file
    #: the configuration of the run, from which values are written into the folder's configurations
    run_config: dict[str, Any] = field(default_factory=dict)
    file: str = TRAIN  #: the name of the configuration's file
    fingerprint: str = ""  #: fingerprint of the data and their split
    #: the id of each case and the hash of its scan, as they were read, besides those of ``datasets``
    scans: Sequence[tuple[str, str]] = ()
    #: the first stage on whose latents the model works; it is written into the model's file
    first_stage: FirstStage | None = None
    counts: Mapping[str, int] = field(default_factory=dict)  #: the number of cases by their split
    datasets: Sequence[Any] = ()  #: the scans of CachedCases among them are compared when a run resumes

    def described(self, figures: Mapping[str, float]) -> dict[str, Any]:
        """The description of the model with its data and the figures of its last validation."""
        data = {"fingerprint": self.fingerprint, **self.counts}
        usable = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
        return {**self.model, "data": data, "figures": usable}

    def read_scans(self) -> list[tuple[str, str]]:
        """The id of each case and the hash of its scan; scans of MONAI's datasets are not known."""
        return [*self.scans, *(scan for data in self.datasets for scan in getattr(data, "contents", ()))]

    @property
    def kind(self) -> str:
        """The kind of the model's file."""
        if "latent_network_def" in self.model:
            return "latent"
        if "levels" in self.model:
            return "fast"
        target = self.model.get("network_def", {}).get("_target_", "")
        return "first_stage" if target.endswith(".FirstStage") else "autoencoder"

    def write_configs(self, folder: Path, *, is_complete: bool = False) -> None:
        """Make the folder a bundle whose configurations describe its training; a complete one keeps its values."""
        root = Path(str(self.run_config.get("bundle_root", ".")))
        if (root / CONFIGS / self.file).is_file():
            complete_bundle(root, folder, with_model=self.kind in ("latent", "fast"))
            ignored = write_values(self.run_config, folder, self.file, dry=is_complete)
            if ignored and is_complete:
                logger.warning(
                    "the training is complete, so these are ignored: %s; omit them, or set overwrite to train again",
                    ", ".join(ignored),
                )

    def state_dict(self) -> dict[str, Any]:
        """The part of the description that a checkpoint keeps; it contains no ids of scans."""
        return {
            "fingerprint": self.fingerprint,
            "model": json.dumps(built_part(self.model), sort_keys=True),
            "scans": [content[:_DIGITS] for _, content in self.read_scans()],
        }

    def differing(self, other: Mapping[str, Any], *, only_weights: bool = False) -> list[str]:
        """The keys in which another description is that of another model, or only of other weights."""
        now, before = built_part(self.model), built_part(other)
        if only_weights:
            now, before = (model_config(each, _OF_THE_WEIGHTS) for each in (now, before))
        return sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))

    def check_resumes(self, checkpoint: Mapping[str, Any], name: str) -> None:
        """Check that a checkpoint, the content of the file ``name``, is one of this training."""
        if differing := self.differing(json.loads(checkpoint["model"])):
            raise _another_model(name, differing)
        if checkpoint["fingerprint"] != self.fingerprint:
            raise ConfigError(f"{name}: was trained on other data, or on another split; use its dataset_dir, {_AGAIN}")
        pairs = zip(checkpoint["scans"], self.read_scans(), strict=False)
        replaced = [scan_id for before, (scan_id, now) in pairs if before != now[:_DIGITS]]
        if replaced:
            raise ConfigError(
                f"{name}: {len(replaced)} of {len(checkpoint['scans'])} scans are not those of the training (the first "
                f"is '{replaced[0][:60]}'): they were replaced, or are damaged; restore them, {_AGAIN}"
            )


def _another_model(name: str, keys: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{name}: belongs to another model with other values of {', '.join(keys)}; use its values, {_AGAIN}"
    )


def check_training(
    network: nn.Module, folder: str | Path, memory: bool = False, first_stage: FirstStage | None = None
) -> None:
    """Check, before any scan is read, that a network fits its images, the memory, and the weights in a folder.

    The memory is checked if ``memory`` is set and there is a cohort, the weights unless the run's ``overwrite`` is set.
    """
    parser = running_parser()
    workload = checked_workload(parser, network, first_stage)
    if memory and parser["dataset_dir"] != "???":
        check_memory(network, workload)
    if not parser.get_parsed_content("overwrite"):
        check_monai_weights(network, folder)


def checked_workload(parser: ConfigParser, network: nn.Module, first_stage: FirstStage | None) -> Workload:
    """The batches of a configuration's training, whose images the network can use."""
    keys = "image_size", "in_channels", "device", "precision", "batch_size", "val_batch_size", "num_pictures"
    size, channels, *others = map(parser.get_parsed_content, keys)
    check_image_size(network, size, first_stage)
    return Workload((channels, *size), *others, first_stage)  # type: ignore[call-arg]


def check_monai_weights(network: nn.Module, folder: str | Path) -> None:
    """Check that the weights that MONAI's tools load are those of a network; without weights, it can be any.

    MONAI (1.6.1) loads those weights that fit, and ignores the others without a message.
    """
    path = Path(folder) / MODELS / MONAI_MODEL
    if not path.is_file():
        return
    state = read_torch_file(path, "cannot be read as weights; copy it again, or train again")
    try:
        check_fit(state if isinstance(state, dict) else {}, network, path.name)
    except ConfigError as error:
        model, running = path.with_name(MODEL), running_parser().get()
        trained = read_description(model) if model.is_file() else {}
        plain = {key: value for key, value in running.items() if not (isinstance(value, dict) or is_formula(value))}
        if differ := sorted(key for key, value in trained.items() if plain.get(key, value) != value):
            raise _another_model(path.name, differ) from error
        raise
