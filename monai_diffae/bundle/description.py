"""The description of a model: taken from the configuration of its training, and written into other configurations."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae.bundle.code import check_code, looks_like_path, strings, with_defaults
from monai_diffae.bundle.config import (
    MODEL_ROOTS,
    SEPARATOR,
    is_formula,
    model_config,
    preprocessing_config,
    references,
)
from monai_diffae.bundle.layout import CONFIGS, MODEL, MULTI_GPU, TRAIN, overlay, shipped
from monai_diffae.bundle.model_file import model_parser, unknown_targets
from monai_diffae.data.atomic import write_atomic
from monai_diffae.errors import ConfigError, UnsafeInputError, one_line, quoted, shortened
from monai_diffae.lazy import on_first_use

with on_first_use:
    from monai_diffae.bundle import parser as parsing

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

logger = logging.getLogger(__name__)

_NOT_DESCRIBED = {
    "imports",
    "bundle_root",
    "dataset_dir",
    "device",
    "cohort",
    "columns",
    "patient_pattern",
    "first_stage",
    "first_stage_bundle",
    "overwrite",
}
# Keys of the training that belong to a description, so that the model can be trained further in the same way.
_RECIPE = (
    "max_epochs",
    "batch_size",
    "accumulation_steps",
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "lr_schedule",
    "max_grad_norm",
    "ema_decay",
    "val_interval",
    "augmentation",
)
# Not written into a folder's configurations: where the files of a run are, and on which machine it runs.
_OF_THE_RUN = {
    "_meta_",
    "bundle_root",
    "dataset_dir",
    "output_dir",
    "overwrite",
    "fine_tune",
    "device",
    "workers",
    "rank",
    "world_size",
    "save_execute_config",
    "tracking_uri",
    "embeddings",
    "cache_dir",
    "cache_gib",
    "check_memory",
    "trust",
}
_OWN_FIRST_STAGE = "$@bundle_root + '/models/model.safetensors'"
_NOTE = "_desc_"  # of MONAI's configurations: free text
_IDLE: dict[str, Any] = {"sequences": [], "encoder_sequences": [], "region": "whole", "other_grids": "resample"}
_ABSENT = object()
_WIDTH = 110  # columns


def describe(parser: ConfigParser, roots: tuple[str, ...] = MODEL_ROOTS) -> dict[str, Any]:
    """The part of a configuration that ``roots`` make up, with formulas evaluated; ``frozen`` lists what these used."""
    config = model_config(parser.get(), roots, in_formulas=False)
    described = {key: evaluated(parser, value, key) for key, value in config.items() if key not in _NOT_DESCRIBED}
    used = tuple(name for text in strings(config) if text.startswith("$") for name in references(text))
    frozen = sorted(model_config(parser.get(), used).keys() & described.keys())
    described = _without_idle_parts(described)
    return {**described, **({"frozen": frozen} if frozen else {})}


def _without_idle_parts(described: dict[str, Any]) -> dict[str, Any]:
    """A description without keys and transforms that do nothing, as models of earlier versions have it."""
    idle = {key for key, value in _IDLE.items() if described.get(key, value) == value}
    if "region" in idle:
        idle.add("region_margin_mm")
    transforms = [
        {name: value for name, value in each.items() if str(value).lstrip("@") not in idle}
        for each in (described.get("preprocessing") or {}).get("transforms", ())
        if not ("region" in idle and _is_region(each))
    ]
    described = {key: value for key, value in described.items() if key not in idle}
    if transforms:
        described["preprocessing"] = {**described["preprocessing"], "transforms": transforms}
    return described


def _is_region(transform: Mapping[str, Any]) -> bool:
    return str(transform.get("_target_")).endswith(".ToRegiond")


def describe_training(parser: ConfigParser) -> dict[str, Any]:
    """How a description's model was trained: the values that differ from the shipped recipe, by their ids."""
    config = parser.get()
    recipe = read_parsed(shipped("bundles") / recipe_of(config) / CONFIGS / TRAIN)
    part = {key: config[key] for key in _RECIPE if key in config}
    found = changes({key: recipe[key] for key in part if key in recipe}, part)
    return {id: evaluated(parser, value, id) for id, value in found if SEPARATOR.split(id)[-1] != _NOTE}


def recipe_of(description: Mapping[str, Any]) -> str:
    """The name of the shipped bundle with whose configurations a model can be trained, such as ``diffae_3d``."""
    network = description.get("network_def")
    target = str(network.get("_target_")) if isinstance(network, Mapping) else ""
    return f"{'autoencoder_kl' if target.endswith('.FirstStage') else 'diffae'}_{description.get('spatial_dims')}d"


def versions() -> dict[str, str]:
    """The versions of the packages that make a model what it is."""
    return {name: version(name.replace("_", "-")) for name in ("monai_diffae", "monai", "torch")}


def made_by_preprocessing(config: Mapping[str, Any]) -> dict[str, Any]:
    """What preprocessed images depend on besides the scans, by a model's description."""
    made_from: dict[str, Any] = {**preprocessing_config(config), **versions()}
    return dict(json.loads(json.dumps(made_from), parse_int=float))  # 1 and 1.0 are the same value


def evaluated(parser: ConfigParser, value: Any, id: str) -> Any:
    """A value of a configuration with this id, with formulas replaced by what they give; without MONAI's notes."""
    if isinstance(value, dict):
        items = with_defaults(value).items()
        parts = {key: evaluated(parser, item, f"{id}#{key}") for key, item in items if key != _NOTE}
        return parts | ({"pretrained": False} if "pretrained" in parts else {})  # the weights are in the model's file
    if isinstance(value, list | tuple):
        return [evaluated(parser, item, f"{id}#{number}") for number, item in enumerate(value)]
    if not (isinstance(value, str) and value.startswith("$")):
        return value
    try:
        return json.loads(json.dumps(parser.get_parsed_content(id), default=lambda number: number.item()))
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{id}: the formula {quoted(value)} gives no plain value, so a model file cannot hold it; write a number, "
            "a single word, or a component with _target_"
        ) from error


def resolved(description: Mapping[str, Any], key: str) -> Any:
    """A part of a description with all references replaced by what they refer to."""
    parser = model_parser(description)

    def replace(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: replace(item) for name, item in value.items()}
        if isinstance(value, list):
            return [replace(item) for item in value]
        is_reference = isinstance(value, str) and value.startswith("@")
        return replace(parser[value[1:]]) if is_reference else value

    try:
        return replace(parser[key])
    except (LookupError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{key}: refers to a key that the model's description does not have; train again") from error


# -- configurations of a folder ----------------------------------------------------------------------------------------


def read_parsed(*files: Path) -> dict[str, Any]:
    """The content of configuration files as a running configuration has it; empty if they cannot be read."""
    parser = parsing.Parser()
    try:
        parser.read_config([str(file) for file in files])
        parser.parse()  # MONAI writes ids in another way into a configuration that it has parsed
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return dict(parser.get())


def write_values(run_config: Mapping[str, Any], folder: Path, file: str = TRAIN, *, dry: bool = False) -> list[str]:
    """Write what a run changes into its folder's configuration, without paths and devices; returns the changed keys."""
    path = folder / CONFIGS / file
    is_distributed = is_formula(run_config.get("world_size"))
    overlays = sorted((folder / CONFIGS).rglob(f"{MULTI_GPU}{file}")) if is_distributed else []
    before = read_parsed(path, *overlays)
    content = json.loads(path.read_text(encoding="utf-8")) if before else {}
    old = deepcopy(content)
    for id, value in changes(before, run_config) if before else ():
        parts = SEPARATOR.split(id)
        first, name = parts[0], parts[-1]
        if name == "first_stage_bundle":
            value = _OWN_FIRST_STAGE
        elif first in _OF_THE_RUN or (name != "patient_pattern" and any(map(_is_path, strings(value)))):
            if first in before or first in _OF_THE_RUN:
                continue
            value = "???"  # an overlay needs it, and the run asks for it
        text = re.sub(r"[@%]\w+(::\w+)+", lambda match: match[0].replace("::", "#"), json.dumps(value))
        set_value(content, id, json.loads(text))  # with ids as people write them
    changed = [key for key in content if content[key] != old.get(key, _ABSENT)]
    if changed and not dry:
        write_config(path, content)
    return changed


def write_description(description: Mapping[str, Any], folder: Path) -> None:
    """Write a description into the training configuration of a folder; only formulas of the recipe are evaluated."""
    path, parser = folder / CONFIGS / TRAIN, parsing.Parser()
    try:
        parser.read_config(str(path))
        if "first_stage" in description:
            parser.read_config([str(path), str(overlay(folder, "latent_space.json"))])
            parser["first_stage_bundle"] = _OWN_FIRST_STAGE
        content = dict(parser.get())
        _fill_in(content, description, folder)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = shortened(one_line(error), 120)
        raise ConfigError(
            f"{MODEL}: its description does not fit {CONFIGS}/{TRAIN}: {reason}; choose another model"
        ) from error
    check_code(content, MODEL)  # MONAI's tools would run it
    write_config(path, content)


def write_config(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the content of a configuration; the blank lines between its groups of keys stay."""
    text = as_json({key: value for key, value in content.items() if key != "_meta_"})
    for key in re.findall(r'\n\n    "(\w+)":', path.read_text(encoding="utf-8")):
        text = text.replace(f'\n    "{key}":', f'\n\n    "{key}":', 1)
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _fill_in(content: dict[str, Any], description: Mapping[str, Any], folder: Path) -> None:
    """Set the values of a training's configuration to those of a description."""
    model = {key: value for key, value in description.items() if key not in _NOT_DESCRIBED | _OF_THE_RUN | {"frozen"}}
    transforms = content["preprocessing"]["transforms"]
    region = next((number for number, each in enumerate(transforms) if _is_region(each)), None)
    idle = [] if region is None or "region" in model else [(region, transforms.pop(region))]  # the model lacks it
    for key in model.keys() & content.keys():
        if _is_plain(model[key]) and not is_formula(content[key]):
            content[key] = model[key]
    described = model_config(content)
    if "first_stage" not in description or not unknown_targets(description):
        parser = parsing.Parser({**json.loads(json.dumps(content)), "bundle_root": str(folder)})
        parser.parse()
        described = describe(parser)
    for id, value in changes(described, {key: model[key] for key in described if key in model}):
        key = id.partition("#")[0]
        is_whole = is_formula(content[key])  # it gives a list of lists
        _set_known(content, key if is_whole else id, model[key] if is_whole else value)
    preprocessing = content["preprocessing"]  # perhaps another one, of the model
    if isinstance(preprocessing, dict) and isinstance(preprocessing.get("transforms"), list):
        for place, transform in idle:
            preprocessing["transforms"].insert(place, transform)
    for id, value in description.get("recipe", {}).items():
        if SEPARATOR.split(id)[0] in _RECIPE:
            with suppress(KeyError, IndexError, TypeError, ValueError):  # of another version of the recipe
                _set_known(content, id, value)


def _set_known(content: dict[str, Any], id: str, value: Any) -> None:
    try:
        check_code({id: value}, MODEL)
    except UnsafeInputError:
        logger.warning("%s/%s lacks the model's %s, which is not trusted; add --trust", CONFIGS, TRAIN, id)
    else:
        set_value(content, id, value)


def set_value(config: dict[str, Any], id: str, value: Any) -> None:
    """Set a value of a configuration by its id, such as ``inferer#steps``; the index after a list's last appends."""
    *parents, last = SEPARATOR.split(id)
    part: Any = config
    for key in parents:
        part = part[int(key)] if isinstance(part, list) else part[key]
    if isinstance(part, list) and int(last) == len(part):
        part.append(value)
    else:
        part[int(last) if isinstance(part, list) else last] = value


def changes(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The ids of values that differ, and the values after the change; each list of plain values is one value."""
    prefix = f"{path}#" if path else ""
    if isinstance(before, dict) and isinstance(after, dict) and (not path or before.keys() <= after.keys()):
        for key in after:
            yield from changes(before.get(key, _ABSENT), after[key], f"{prefix}{key}")
    elif _is_list_of_parts(before) and _is_list_of_parts(after) and len(before) <= len(after):
        for number, item in enumerate(after):
            yield from changes(before[number] if number < len(before) else _ABSENT, item, f"{prefix}{number}")
    else:
        after = list(after) if isinstance(after, tuple) else after
        if before != after:
            yield path, after


def _is_list_of_parts(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, (dict, list)) or is_formula(item) for item in value)


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, list) else not (isinstance(value, dict) or is_formula(value))


def _is_path(text: str) -> bool:
    return looks_like_path(text) or bool(text and Path(text).is_file())


def as_json(value: Any, indent: str = "") -> str:
    """A configuration as the text of its file: what is short, or a list of numbers, is on one line."""
    inner, line = f"{indent}    ", json.dumps(value)
    is_short = len(indent) + len(line) < _WIDTH
    if isinstance(value, dict) and value and not (is_short and len(indent) > 4):
        lines, (start, end) = [f"{json.dumps(key)}: {as_json(item, inner)}" for key, item in value.items()], "{}"
    elif isinstance(value, list) and not is_short and not all(isinstance(item, int | float) for item in value):
        lines, (start, end) = [as_json(item, inner) for item in value], "[]"
    else:
        return line
    text = f",\n{inner}".join(lines)
    return f"{start}\n{inner}{text}\n{indent}{end}" + ("" if indent else "\n")
