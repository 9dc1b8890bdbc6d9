"""Checks of a configuration before anything is built: unused keys, unknown arguments, values that cannot be used."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import pydoc
import re
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args

from monai_diffae.bundle.code import components, strings
from monai_diffae.data.fingerprints import json_digest
from monai_diffae.errors import ConfigError, DiffAEError, MachineError, counted, find_error, one_line, quoted, shortened
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Colour, Doubtful, OnBadScan, OtherGrids, Region, Uneven

with on_first_use:
    import torch

    from monai_diffae.bundle import parser as parsing

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

_T = TypeVar("_T")

_NO_ARGUMENTS = {"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"}
# Keys that a run itself uses, and keys that MONAI's applications use, even if nothing in the configuration does.
_RUN_IDS = {
    "_meta_",
    "imports",
    "bundle_root",
    "initialize",
    "run",
    "finalize",
    "embed",
    "generate",
    "export",
    "is_not_rank0",
    "trust",
}
_STANDARD_IDS = _RUN_IDS | {
    "device",
    "dataset_dir",
    "output_dir",
    "dataset",
    "datalist",
    "preprocessing",
    "postprocessing",
    "network_def",
    "latent_network_def",
    "network",
    "inferer",
    "evaluator",
    "handlers",
    "train",
    "validate",
    "val_interval",
    "training",
    "evaluating",
    "reconstruct",
    "tracking",
    "save_execute_config",
}
# The same in the sections ``train`` and ``validate``.
_SECTION_IDS = {
    "dataset",
    "dataloader",
    "handlers",
    "trainer",
    "evaluator",
    "inferer",
    "postprocessing",
    "preprocessing",
    "key_metric",
    "additional_metrics",
    "handler",
}


def check_config_of_run(config: dict[str, Any]) -> None:
    """Check the configuration of a run before anything is built; of ``???``, only what a network needs is an error."""
    check_required_values(model_config(config, roots=("network_def",)) if "network_def" in config else config)
    check_dimensions(config)
    check_config(config, known=set().union(*_files_read(config)))
    check_rules(config)
    if isinstance(config.get("device"), str) and not is_formula(config["device"]):
        find_device(config["device"])
    check_components(config)


def check_image_size(
    network: torch.nn.Module, image_size: Sequence[int], first_stage: torch.nn.Module | None = None
) -> None:
    """Check that a network can use images of this size, or their latents; one without ``size_divisors`` can use any.

    Raises:
        ConfigError: it cannot; the message names the nearest usable size.
    """
    outer = getattr(first_stage, "size_divisors", (1,) * len(image_size))
    own = getattr(network, "size_divisors", (1,) * len(outer))
    divisors = [f * d for f, d in zip(outer, own, strict=False)]
    given = f"image_size is {quoted(list(image_size))}"
    if len(image_size) != len(divisors):
        raise ConfigError(f"{given}; a {len(divisors)}D network takes {len(divisors)} sizes")
    if any(size % d or size < 1 for size, d in zip(image_size, divisors, strict=True)):
        from monai_diffae.networks.blocks import shown_divisors

        nearest = [max(d, round(size / d) * d) for size, d in zip(image_size, divisors, strict=True)]
        raise ConfigError(
            f"{given}; the network needs multiples of {shown_divisors(divisors)}, such as {quoted(nearest)}"
        )
    norms = [module for module in network.modules() if isinstance(module, torch.nn.GroupNorm)]
    widest = max(norms, key=lambda norm: norm.num_channels, default=None)
    if widest is not None and widest.num_groups == widest.num_channels and [*image_size] == divisors:
        raise ConfigError(
            f"{given}; the network's last level would be one pixel of "
            f"{counted(widest.num_channels, 'channel')}, too few to normalise; use a larger image_size, or fewer levels"
        )


def check_config(config: dict[str, Any], known: Set[str] = frozenset()) -> None:
    """Check that every key is used: otherwise, a misspelt override would silently have no effect."""
    used = references(config) | known | (_RUN_IDS if known else _STANDARD_IDS)
    for key in config:
        if key not in used:
            raise ConfigError(unknown_key(key, used))
    for section in ("train", "validate"):
        pattern = rf"[@%]{section}(?:{SEPARATOR.pattern})(\w+)"
        used = _SECTION_IDS | {key for text in strings(config) for key in re.findall(pattern, text)}
        content = config.get(section, {})
        if not isinstance(content, dict):
            raise ConfigError(f"{section}: is {quoted(content)}; it must be a section with keys")
        for key in content:
            if "_target_" not in content and key not in used:
                raise ConfigError(unknown_key(f"{section}#{key}", used))
    check_arguments(config)


def check_arguments(config: dict[str, Any]) -> None:
    """Check that each component's ``_target_`` takes the component's arguments."""
    locator = parsing.ModuleLocator()
    for path, component in components(config):
        parameters = _parameters(component["_target_"], locator)
        if parameters is None:
            continue
        for key in component.keys() - _NO_ARGUMENTS:
            if key not in parameters:
                named = ", ".join(sorted(parameters - {"self", "args", "kwargs"})) or "no arguments"
                raise ConfigError(
                    f"unknown config key {quoted(f'{path}#{key}')}: {component['_target_']} takes {named}"
                    f"{_nearest(key, parameters)}"
                )


def without_effect(config: dict[str, Any], run_id: str) -> list[str]:
    """The keys whose values differ from those of the bundle's files, but which the run with this id does not use."""
    files = _files_read(config)
    unused = set().union(*files) - _RUN_IDS - model_config(config, roots=(run_id, "initialize")).keys()
    return sorted(key for key in unused if config[key] not in [content.get(key) for content in files])


def _files_read(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The bundle's configuration files whose keys ``config`` holds completely; none if one is not readable."""
    configs = Path(str(config.get("bundle_root", "."))) / "configs"
    try:
        texts = [file.read_text().replace("#", "::") for file in configs.rglob("*.json")]  # as MONAI writes ids
        files = [
            {SEPARATOR.split(key)[0].removeprefix("+"): v for key, v in json.loads(text).items()} for text in texts
        ]
    except (OSError, ValueError, AttributeError):
        return []
    return [content for content in files if content.keys() <= config.keys()]


def _parameters(target: Any, locator: parsing.ModuleLocator) -> Set[str] | None:
    """The keyword parameters of a target; None if it takes any keyword, or if they are unknown."""
    from monai.utils import ensure_tuple

    if isinstance(target, str) and "." not in target:
        target = f"{ensure_tuple(locator.get_component_module_name(target))[0]}.{target}"
    try:
        component: Any = pydoc.locate(target)
        signatures = [inspect.signature(component)]
        if target.startswith("monai_diffae."):  # our classes pass ``**kwargs`` on; those of others may do anything
            bases = getattr(component, "__mro__", (component, object))[1:-1]
            signatures += [inspect.signature(base) for base in bases if "__init__" in vars(base)]
    except (pydoc.ErrorDuringImport, AttributeError, IndexError, TypeError, ValueError):
        return None
    names: set[str] = set()
    for signature in signatures:
        names |= signature.parameters.keys()
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
            return names
    return None


def unknown_key(id: str, used: set[str]) -> str:
    """The message about a key that nothing uses, with the most similar one."""
    hint = _nearest(id.rpartition("#")[2], used)
    return f"unknown config key {quoted(id)}: nothing in the configuration uses it{hint}"


def _nearest(key: str, known: Set[str]) -> str:
    matches = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


# -- values and references ---------------------------------------------------------------------------------------------

MODEL_ROOTS = ("network_def", "preprocessing", "inferer", "encoder_key", "cohort")
"""The keys that describe an autoencoder; everything that they refer to belongs to them."""

SEPARATOR = re.compile("#|::")  # separates the parts of an id: ``#`` as people write it, ``::`` as MONAI stores it
_REFERENCE = re.compile(r"[@%](?:::|#)*([A-Za-z_]\w*)")


class _Rule(NamedTuple):
    """The condition for the values of a key, and the same in words."""

    holds: Callable[[Any], bool]
    text: str


def _whole(least: int) -> _Rule:
    return _Rule(lambda value: type(value) is int and value >= least, f"a whole number of at least {least}")


def _number(low: float, high: float = math.inf, text: str = "") -> _Rule:
    return _Rule(lambda value: _is_number(value) and low <= value < high, text or f"a number of at least {low:g}")


def _or_null(rule: _Rule) -> _Rule:
    return _Rule(lambda value: value is None or rule.holds(value), f"{rule.text}, or null")


def _pair(high: float) -> _Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 2 and 0 <= value[0] < value[1] <= high

    return _Rule(holds, f"two numbers from 0 to {high:g}, the lower one first")


def _list(holds: Callable[[Any], bool], text: str) -> _Rule:
    return _Rule(lambda value: isinstance(value, list) and all(map(holds, value)), f"a list of {text}")


def _one_of(*choices: Any) -> _Rule:
    names = [repr(choice) for choice in choices]
    return _Rule(lambda value: value in choices, f"{', '.join(names[:-1])} or {names[-1]}")


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max  # whole numbers of a configuration can be larger


def sequence_values(sequences: Sequence[str], encoder_sequences: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a configuration that train on these sequences, and an encoder that sees its own ones."""
    values: dict[str, Any] = {"sequences": list(sequences), "in_channels": len(sequences)} if sequences else {}
    if encoder_sequences:
        channels = [len(sequences) or 1, len(encoder_sequences)]
        values |= {
            "encoder_sequences": list(encoder_sequences),
            "image_keys": ["image", "encoder_image"],
            "encoder_key": "encoder_image",
            "network_def#encoder#in_channels": channels[1],
            "preprocessing#transforms#0#channels": channels,
        }
    return values


OF_ONE_SPLIT = ("train#preprocessing", "validate#preprocessing")
"""The preprocessing of a split; a reference to ``preprocessing`` unless it is overridden."""

RULES: dict[str, _Rule] = {
    **dict.fromkeys(
        ("overwrite", "fine_tune", "mlflow", "channels_last", "check_memory", "cache_latents"),
        _Rule(lambda value: isinstance(value, bool), "True or False"),
    ),
    **dict.fromkeys(
        (
            "max_epochs",
            "batch_size",
            "val_batch_size",
            "accumulation_steps",
            "val_interval",
            "report_every",
            "picture_steps",
            "slice_step",
            "in_channels",
            "world_size",
            "num_rounds",
        ),
        _whole(1),
    ),
    **dict.fromkeys(("seed", "warmup_steps", "num_pictures", "probe_interval", "rank", "calibration_cases"), _whole(0)),
    "workers": _or_null(_whole(0)),
    **dict.fromkeys(("early_stop_patience", "limit"), _or_null(_whole(1))),
    **dict.fromkeys(("max_minutes", "max_grad_norm"), _or_null(_number(1e-12, text="a number above 0"))),
    **dict.fromkeys(
        (
            "learning_rate",
            "weight_decay",
            "gradient_weight",
            "lpips_weight",
            "mixed",
            "checkpoint_minutes",
            "region_margin_mm",
        ),
        _number(0),
    ),
    **dict.fromkeys(("ema_decay", "val_fraction", "test_fraction"), _number(0, 1, "a number from 0 to below 1")),
    "spatial_dims": _one_of(2, 3),
    **{
        key: _list(lambda value: isinstance(value, str), words)
        for key, words in {
            "sequences": "sequences",
            "encoder_sequences": "sequences",
            "image_keys": "names",
            "probe_targets": "labels",
        }.items()
    },
    "image_size": _Rule(
        lambda value: (
            isinstance(value, list)
            and all(type(size) is int and size > 0 for size in value)
            and 4 * math.prod(value) <= 2**31
        ),  # as of a scan
        "a list of whole numbers, such as [64, 64], and at most 2 GiB of float32",
    ),
    "spacing_mm": _list(
        lambda value: _is_number(value) and value > 0, "numbers above 0 in mm, one per axis, such as [1.5, 1.5, 3]"
    ),
    **{
        key: _one_of(*get_args(choices))
        for key, choices in {
            "other_grids": OtherGrids,
            "region": Region,
            "on_bad_scan": OnBadScan,
            "uneven": Uneven,
            "doubtful": Doubtful,
        }.items()
    },
    "colour": _or_null(_one_of(*get_args(Colour))),
    "nonfinite": _Rule(lambda value: value == "error" or _is_number(value), "'error' or a number"),
    "percentiles": _pair(100),
    "slice_range": _pair(1),
    "patient_pattern": _or_null(_Rule(lambda value: isinstance(value, str), "a regular expression")),
    "columns": _Rule(lambda value: isinstance(value, dict), "names of the table's columns, such as {'image': 'file'}"),
}
"""The rules for keys of the training configurations. Arguments of commands are checked by their own annotations."""


def check_rules(config: Mapping[str, Any]) -> None:
    """Check the plain values of the top-level keys by :data:`RULES`; a tuple counts as a list."""
    for key, (holds, text) in RULES.items():
        value = config.get(key)
        if key not in config or is_formula(value) or (value is None and "network_def" not in config):
            continue  # in the run of a command, null stands for the model's value
        if value == "???":
            raise ConfigError(f"{key}: is required; give it a value")
        value = list(value) if isinstance(value, tuple) else value
        try:
            is_valid = holds(value)
        except TypeError:
            is_valid = False
        if not is_valid:
            raise ConfigError(f"{key} is {quoted(value)}; it must be {text}")


def check_dimensions(config: dict[str, Any]) -> None:
    """Check that sizes have as many axes as ``spatial_dims``; an overlay for another bundle may change that."""
    dims = config.get("spatial_dims")
    if dims not in (2, 3):
        return
    todo = "omit the overlay for others; configs/overlays has those that fit"
    for key in ("spacing_mm", "image_size"):
        value = config.get(key, [])
        if isinstance(value, list) and value and len(value) != dims:
            raise ConfigError(f"{key} is {quoted(value)}, but spatial_dims is {dims}; give {dims} numbers, or {todo}")


def check_components(config: Mapping[str, Any]) -> None:
    """Refuse components of images where each site would fit others, or where they would be fitted to latents."""
    other = next((key for key in ("num_rounds", "first_stage_bundle") if key in config), None)
    targets = {str(part["_target_"]).rpartition(".")[2] for _, part in components(dict(config))} if other else set()
    if targets & {"AnchoredEncoder", "FixedComponents"}:
        todo = "make a bundle by init, and omit the overlays words and anchored"
        raise ConfigError(f"{other}: this training cannot use typical patches; {todo}")


def check_required_values(config: dict[str, Any]) -> None:
    """Check that no key that is used is still ``???``."""
    missing = [key for key in config if config[key] == "???" and key in references(config)]
    if config.get("embeddings"):  # train_latent needs only one of the two
        missing = [key for key in missing if key != "dataset_dir"]
    if missing:
        raise ConfigError(f"{missing[0]}: is required; give it a value")


def is_formula(value: Any) -> bool:
    """Whether a value is an expression or a reference, not a plain value."""
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def references(value: Any) -> set[str]:
    """The top-level keys that a part of a configuration refers to."""
    return {name for text in strings(value) for name in _REFERENCE.findall(text)}


def find_device(device: str | torch.device | None) -> torch.device:
    """The device of this name, which this machine has; None: the GPU if there is one, else the CPU."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        if str(device).split(":")[0] not in ("cpu", "cuda", "mps", "xpu"):
            raise ConfigError(f"device: there is no {quoted(str(device))}; choose cpu or cuda") from error
        raise MachineError(f"device: {quoted(str(device))} is not usable on this machine; choose cpu") from error
    return torch.device(device)


def model_config(
    config: Mapping[str, Any], roots: tuple[str, ...] = MODEL_ROOTS, *, in_formulas: bool = True
) -> dict[str, Any]:
    """The part of a configuration that ``roots`` and all that they refer to (``in_formulas``: also there) make up."""
    keys: set[str] = set()
    to_visit = [root for root in roots if root in config]
    while to_visit:
        key = to_visit.pop()
        if key not in keys:
            keys.add(key)
            texts = [text for text in strings(config[key]) if in_formulas or not text.startswith("$")]
            to_visit += references(texts) & config.keys()
    return {key: value for key, value in config.items() if key in keys}


def preprocessing_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a model's description that says how scans are preprocessed, with the keys that it refers to."""
    return model_config(config, roots=("preprocessing",))


def preprocessing_checksum(preprocessing: Mapping[str, Any]) -> str:
    """SHA-256 of the values of :func:`preprocessing_config`; 1 and 1.0 are the same value."""
    plain = json.loads(json.dumps(preprocessing), parse_int=float)
    return json_digest(plain)


def build(parser: ConfigParser, key: str, kind: type[_T]) -> _T:
    """Build the component of a configuration with this id, and check its type."""
    try:
        component = parser.get_parsed_content(key)
    except Exception as error:
        cause = find_error(error, DiffAEError)
        if cause is not None:
            raise type(cause)(str(cause)) from error
        check_arguments(model_config(parser.get(), roots=(key,)))
        reason = shortened(one_line(error), 160)
        raise ConfigError(f"{key}: cannot be built from the configuration: {reason}") from error
    if not isinstance(component, kind):
        raise ConfigError(f"{key}: must be a {kind.__name__}, but the configuration gives {type(component).__name__}")
    return component
