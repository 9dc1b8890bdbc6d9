"""The settings of a training: which values of the bundle's configuration it changed. They are kept beside the weights.

The file is an overlay of the training's configuration. A training that is resumed uses it by itself. A run of
``python -m monai.bundle`` that starts from a trained bundle needs it as one more ``--config_file``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_diffae.bundle.config_values import is_formula
from monai_diffae.bundle.json_files import read_values
from monai_diffae.bundle.layout import CONFIG, CONFIGS, MULTI_GPU, TRAIN, TRAINING
from monai_diffae.bundle.parser import Parser
from monai_diffae.bundle.private_values import PRIVATE_KEYS, SEPARATOR, without_paths

# Not remembered: where the files of a run are, and on which machine it runs.
_FORGOTTEN_KEYS = {
    "_meta_", "bundle_root", "dataset_dir", "output_dir", "overwrite", "start_from", "device", "workers", "rank",
    "world_size", "save_execute_config",
}  # fmt: skip


def training_settings(config: dict[str, Any], file: str = TRAIN) -> dict[str, Any]:
    """The values of a training's configuration that differ from the bundle's file, by their ids.

    Values that only concern the run, such as the device, are omitted, and so are paths, patterns that find patients in
    paths, and other private values.

    Args:
        config: the configuration of the training, with its ``bundle_root``.
        file: the bundle's file in ``configs`` that the training began with.

    Returns:
        Ids and values, as in an overlay. Nothing if the bundle has no such file. A private value of a key that the
        bundle does not have is ``???``, which has to be given again.
    """
    before = bundle_config(config, file)
    settings: dict[str, Any] = {}
    for key, value in changes(before, config) if before else ():
        if not _is_private(key, value):
            settings[key] = value
        elif SEPARATOR.split(key)[0] not in before:
            settings[key] = "???"  # an overlay needs it, and the run asks for it
    return settings


def bundle_config(config: Mapping[str, Any], file: str = TRAIN) -> dict[str, Any]:
    """The content of the bundle's file with which a run began, parsed as a running configuration is; empty without one.

    A run of several processes also began with ``multi_gpu_train.json``.
    """
    configs = Path(str(config.get("bundle_root", "."))) / CONFIGS
    is_distributed = is_formula(config.get("world_size"))
    files = [configs / file, *([configs / f"{MULTI_GPU}{file}"] if is_distributed else [])]
    parser = Parser()
    try:
        parser.read_config([str(path) for path in files])
        parser.parse()  # MONAI writes ids in another way into a configuration that it has parsed
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return dict(parser.get())


def read_training_settings(models: Path, prefix: str = "") -> dict[str, Any]:
    """Read the settings of the training that wrote a ``models`` folder: ids and values; nothing if it wrote none.

    The pattern that finds patients in paths is private, and therefore read from the model's own configuration.

    Example:
        >>> read_training_settings(Path("no_such_bundle/models"))
        {}
    """
    advice = "remove it, and give the settings of the training again"
    content = read_values(models / f"{prefix}{TRAINING}", advice)
    pattern = read_values(models / f"{prefix}{CONFIG}").get("patient_pattern")
    settings = {key: value for key, value in content.items() if key != "_meta_"}
    return settings if pattern in (None, "???") else {**settings, "patient_pattern": pattern}


def changes(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The ids of values that differ, and the values after the change; each list of plain values is one value.

    Example:
        >>> before = {"a": {"b": 1, "c": 2}, "size": [1, 2], "list": [{"p": 1}, {"p": 2}], "device": "cpu"}
        >>> after = {"a": {"b": 1, "c": 3, "d": 4}, "size": [1, 3], "list": [{"p": 1}, {"p": 0}], "device": "cuda"}
        >>> list(changes(before, after))
        [('a#c', 3), ('a#d', 4), ('size', [1, 3]), ('list#1#p', 0)]
    """
    prefix = f"{path}#" if path else ""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() <= after.keys():
        for key in after:
            if path or key not in _FORGOTTEN_KEYS:
                yield from changes(before.get(key, _ABSENT), after[key], f"{prefix}{key}")
    elif _has_parts(before) and _has_parts(after) and len(before) == len(after):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from changes(one, other, f"{prefix}{i}")
    else:
        after = list(after) if isinstance(after, tuple) else after
        if before != after:
            yield path, after


def overlap(first: str, second: str) -> bool:
    """Whether one id is the other, or a part of it.

    Example:
        >>> overlap("train#handlers", "train#handlers#3"), overlap("train", "training")
        (True, False)
    """
    return f"{first}#".startswith(f"{second}#") or f"{second}#".startswith(f"{first}#")


_ABSENT = object()


def _has_parts(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, (dict, list)) or is_formula(item) for item in value)


def _is_private(key: str, value: Any) -> bool:
    name = SEPARATOR.split(key)[-1]
    if name in PRIVATE_KEYS and not is_formula(value):
        return True
    return without_paths({"value": value}) != {"value": value}
