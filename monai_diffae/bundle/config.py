"""The configuration of a bundle run: read from MONAI's parser, checked for unused keys, reduced to the model."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence, Set
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import ensure_tuple

from monai_diffae.bundle import config_values
from monai_diffae.bundle.config_values import (
    check_dimensions,
    check_required_values,
    check_values,
    check_views,
    references,
    strings,
)
from monai_diffae.bundle.layout import CONFIGS
from monai_diffae.bundle.parser import ModuleLocator
from monai_diffae.bundle.private_values import SEPARATOR
from monai_diffae.bundle.run_messages import show_plain_messages_in_bundle_runs
from monai_diffae.errors import ConfigError, quoted

_T = TypeVar("_T")

_NO_ARGUMENTS = {"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"}
# Keys that a run itself uses, and keys that MONAI's applications use, even if nothing in the configuration does.
_RUN_IDS = {"_meta_", "imports", "bundle_root", "initialize", "run", "finalize"}
_STANDARD_IDS = _RUN_IDS | {
    "device", "dataset_dir", "output_dir", "dataset", "datalist", "preprocessing", "postprocessing", "network_def",
    "latent_network_def", "network", "inferer", "evaluator", "handlers", "train", "validate", "val_interval",
    "training", "evaluating", "tracking", "save_execute_config",
}  # fmt: skip
# The same in the sections ``train`` and ``validate``.
_SECTION_IDS = {
    "dataset", "dataloader", "handlers", "trainer", "evaluator", "inferer", "postprocessing", "preprocessing",
    "key_metric", "additional_metrics", "handler",
}  # fmt: skip


def running_config() -> dict[str, Any]:
    """The configuration of the bundle run that evaluates the calling expression, with all overrides, not evaluated.

    Raises:
        ConfigError: the caller is not an expression of a bundle's configuration.
    """
    config: dict[str, Any] = deepcopy(running_parser().get())
    return config


def running_parser() -> ConfigParser:
    """The parser of the bundle run that evaluates the calling expression.

    MONAI (1.6.1) gives expressions no access to its parser, so the parser is searched for on the call stack.
    """
    parser = _on_call_stack(ConfigParser)
    if parser is None:
        raise ConfigError("running_config: can only be called from an expression of a bundle's configuration")
    return parser


def _on_call_stack(kind: type[_T]) -> _T | None:
    """The innermost object of this type with a method on the call stack."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, kind):
            return owner
        frame = frame.f_back
    return None


def is_called_by(function: Callable[..., Any]) -> bool:
    """Whether a function has called the caller of this one, directly or not.

    Example:
        >>> def outer():
        ...     return is_called_by(outer)
        >>> outer(), is_called_by(outer)
        (True, False)
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def use_folder_of_config() -> None:
    """In a MONAI workflow whose ``bundle_root`` is ``.``, the default of all files, use the folder with ``configs``.

    For MONAI (1.6.1), ``.`` is the current directory.
    """
    parser, workflow = running_parser(), _on_call_stack(ConfigWorkflow)
    if workflow is not None and parser.get("bundle_root") == "." and workflow.config_root_path.name == CONFIGS:
        parser["bundle_root"] = str(workflow.config_root_path.parent)


def check_all_set() -> None:
    """Check that the running configuration has all values that it needs, when its run starts.

    Raises:
        ConfigError: a key is used and still ``???``; the message names it.
    """
    check_required_values(running_config())


def check_running_config() -> None:
    """Check the running configuration before anything is built. ``python -m monai.bundle`` then shows plain errors.

    If it describes a network, only the values that the network needs have to be given: MONAI's tools build it without
    data. :func:`check_all_set` checks the others when the run starts.

    Raises:
        ConfigError: a key is unknown or has a value that cannot be used; see :func:`check_config` and
            :mod:`~monai_diffae.bundle.config_values`.
        MachineError: this machine does not have the device.
    """
    show_plain_messages_in_bundle_runs()
    use_folder_of_config()
    config = running_config()
    check_required_values(model_config(config, roots=("network_def",)) if "network_def" in config else config)
    check_dimensions(config)
    check_config(config, known=_keys_of_files_read(config))
    check_values(config)
    check_views(config)


def check_image_size(network: object, image_size: Sequence[int]) -> None:
    """Check that a network can use images of this size; networks without ``size_divisors`` can use any.

    Raises:
        ConfigError: it cannot; the message names the nearest usable size.
    """
    config_values.check_image_size(image_size, getattr(network, "size_divisors", (1,) * len(image_size)))


def check_config(config: dict[str, Any], known: Set[str] = frozenset()) -> None:
    """Check that every key is used. Otherwise, a misspelt override would silently have no effect.

    A top-level key, and a key of the sections ``train`` and ``validate``, must be referred to by another entry, be one
    of MONAI's, or be in ``known``. A component's keys must be parameters of its ``_target_``. The top-level keys in
    ``known``, those of the files that were read, need no reference, as an override may have replaced the entry that
    refers to them. If they are given, MONAI's keys are only those that a run itself uses.

    Example:
        >>> check_config({"lr": 1, "lrr": 2, "train": {"rate": "@lr"}})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: unknown config key 'lrr': nothing in the configuration uses it; did you ...
    """
    used = references(config) | known | (_RUN_IDS if known else _STANDARD_IDS)
    for key in config:
        if key not in used:
            raise ConfigError(_unknown(key, used))
    for section in ("train", "validate"):
        used = _SECTION_IDS | {
            key for text in strings(config) for key in re.findall(rf"[@%]{section}(?:{SEPARATOR.pattern})(\w+)", text)
        }
        content = config.get(section, {})
        if not isinstance(content, dict):
            raise ConfigError(f"{section}: is {quoted(content)}; it must be a section with keys")
        for key in content:
            if "_target_" not in content and key not in used:
                raise ConfigError(_unknown(f"{section}#{key}", used))
    check_arguments(config)


def check_arguments(config: dict[str, Any]) -> None:
    """Check that each component's ``_target_`` takes the component's arguments.

    Example:
        >>> check_arguments({"act": {"_target_": "torch.nn.ELU", "beta": 1}})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: unknown config key 'act#beta': torch.nn.ELU takes alpha, inplace
    """
    locator = ModuleLocator()
    for path, component in _components(config):
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


def model_config(
    config: dict[str, Any],
    roots: tuple[str, ...] = ("network_def", "preprocessing", "inferer", "encoder_key", "cohort"),
) -> dict[str, Any]:
    """The part of a configuration that describes the model and the split of its cohort.

    This part is enough to load the trained model and to tell on which cases it was trained. It can replace the same
    keys in any other configuration of the bundle. The place of the data is omitted.

    Args:
        config: the configuration of the training.
        roots: the keys that describe the model; everything that they refer to is included.

    Example:
        >>> model_config({"network_def": {"_target_": "N", "z": "@z"}, "z": 8, "lr": 1}, roots=("network_def",))
        {'network_def': {'_target_': 'N', 'z': '@z'}, 'z': 8}
    """
    keys, to_visit = {"imports"}, [root for root in roots if root in config]
    while to_visit:
        key = to_visit.pop()
        if key in keys:
            continue
        keys.add(key)
        to_visit += references(config[key]) & config.keys()
    return {key: value for key, value in config.items() if key in keys - {"dataset_dir"}}


def _keys_of_files_read(config: dict[str, Any]) -> set[str]:
    """The keys of the bundle's configuration files that ``config`` holds completely; empty if none is readable."""
    configs = Path(str(config.get("bundle_root", "."))) / "configs"
    try:
        files = [json.loads(file.read_text()) for file in configs.glob("*.json")]
        keys = [{SEPARATOR.split(key)[0].removeprefix("+") for key in content} for content in files]
    except (OSError, ValueError, TypeError):
        return set()
    return set().union(*(file_keys for file_keys in keys if file_keys <= config.keys()))


def _components(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The components in a part of a configuration, with their ids."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for key, item in value.items():
            if key != "_meta_":
                yield from _components(item, f"{path}#{key}" if path else key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _components(item, f"{path}#{i}")


def _parameters(target: Any, locator: ModuleLocator) -> set[str] | None:
    """The keyword parameters of a target; None if it takes any keyword, or if they are unknown."""
    if not isinstance(target, str):
        return None
    if "." not in target:
        modules = ensure_tuple(locator.get_component_module_name(target))
        if not modules or modules[0] is None:
            return None
        target = f"{modules[0]}.{target}"
    module, _, name = target.rpartition(".")
    try:
        __import__(module)
        signature = inspect.signature(getattr(sys.modules[module], name))
    except (ImportError, AttributeError, ValueError, TypeError):
        return None
    names = signature.parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in names.values()):
        # Our classes pass ``**kwargs`` on to their base class; other packages may do anything with them.
        is_ours = module.startswith("monai_diffae.")
        return _parameters_of_bases(getattr(sys.modules[module], name), set(names)) if is_ours else None
    return set(names)


def _parameters_of_bases(target: Any, names: set[str]) -> set[str] | None:
    """The parameters of a class that passes ``**kwargs`` on to its base class; None if the base class takes any."""
    for base in getattr(target, "__mro__", (None, None))[1:]:
        if base is None or base is object:
            return None
        if "__init__" in vars(base):
            parameters = inspect.signature(base).parameters
            names |= set(parameters)
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
                return names
    return None


def _unknown(id: str, used: set[str]) -> str:
    hint = _nearest(id.rpartition("#")[2], used)
    return f"unknown config key {quoted(id)}: nothing in the configuration uses it{hint}"


def _nearest(key: str, known: set[str]) -> str:
    matches = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
