"""Checks of a configuration's plain values, before any scan is read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from monai_diffae.errors import ConfigError, MachineError, quoted
from monai_diffae.networks.blocks import shown_divisors
from monai_diffae.policies import Colour, Doubtful, OnBadScan, Uneven

_REFERENCE = re.compile(r"[@%](?:::|#)*([A-Za-z_]\w*)")


@dataclass(frozen=True)
class _Rule:
    """The condition for the values of a key: as a function, and in words for messages."""

    holds: Callable[[Any], bool]
    text: str


def _whole(least: int, or_null: bool = False) -> _Rule:
    def holds(value: Any) -> bool:
        if value is None:
            return or_null
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return _Rule(holds, f"a whole number of at least {least}" + (", or null" if or_null else ""))


def _number(low: float, high: float = math.inf, text: str = "", or_null: bool = False) -> _Rule:
    def holds(value: Any) -> bool:
        if value is None:
            return or_null
        return _is_number(value) and low <= value < high

    return _Rule(holds, text or f"a number of at least {low:g}")


_BOOL = _Rule(lambda value: isinstance(value, bool), "True or False")
_NAMES = _Rule(lambda value: isinstance(value, list) and bool(value), "a list of names")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(*choices: Any) -> _Rule:
    names = ["null" if choice is None else repr(choice) for choice in choices]
    return _Rule(lambda value: value in choices, f"{', '.join(names[:-1])} or {names[-1]}")


RULES: dict[str, _Rule] = {
    **dict.fromkeys(("overwrite", "mlflow", "channels_last", "check_memory", "use_checkpoint", "cache_latents"), _BOOL),
    **dict.fromkeys(
        ("max_epochs", "batch_size", "val_batch_size", "accumulation_steps", "val_interval", "report_every",
         "picture_steps", "slice_step", "in_channels", "world_size", "z_channels", "base_channels", "num_res_blocks",
         "num_rounds"),
        _whole(1),
    ),
    **dict.fromkeys(("seed", "warmup_steps", "num_pictures", "probe_interval", "rank"), _whole(0)),
    "workers": _whole(0, or_null=True),
    "early_stop_patience": _whole(1, or_null=True),
    "calibration_cases": _whole(0),
    "max_minutes": _number(1e-3, text="a number above 0, or null", or_null=True),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "agreement_weight", "gradient_weight", "lpips_weight", "mixed",
         "checkpoint_minutes", "cache_gib"),
        _number(0),
    ),
    "max_grad_norm": _number(1e-12, text="a number above 0, or null", or_null=True),
    "ema_decay": _number(0, 1, "a number from 0 to below 1"),
    **dict.fromkeys(("val_fraction", "test_fraction"), _number(0, 1, "a number from 0 to below 1")),
    "spatial_dims": _one_of(2, 3),
    "image_keys": _NAMES,
    "probe_targets": _Rule(
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value), "a list of labels"
    ),
    "image_size": _Rule(
        lambda value: isinstance(value, list) and len(value) in (2, 3) and all(_whole(1).holds(v) for v in value),
        "a list of whole numbers, such as [64, 64]",
    ),
    "spacing_mm": _Rule(
        lambda value: isinstance(value, (list, tuple)) and bool(value) and all(_is_number(v) and v > 0 for v in value),
        "a list of numbers above 0 in mm, one per axis, such as [1.5, 1.5, 3]",
    ),
    "channel_mult": _Rule(
        lambda value: isinstance(value, list) and bool(value) and all(_whole(1).holds(v) for v in value),
        "a list of whole numbers of at least 1, one per level, such as [1, 2, 4]",
    ),
    "attention_levels": _Rule(
        lambda value: isinstance(value, list) and all(_whole(0).holds(v) for v in value),
        "a list of levels, such as [2, 3], where 0 is full resolution",
    ),
    "z_grid": _Rule(
        lambda value: all(_whole(1).holds(v) for v in (value if isinstance(value, list) and value else [value])),
        "a whole number of at least 1, or a list with one per axis",
    ),
    "strides": _Rule(
        lambda value: value is None or isinstance(value, list),
        "a list with one stride per level below the first, such as [2, [2, 2, 1]], or null",
    ),
    "on_bad_scan": _one_of(*get_args(OnBadScan)),
    "colour": _one_of(*get_args(Colour)),
    "uneven": _one_of(*get_args(Uneven)),
    "doubtful": _one_of(*get_args(Doubtful)),
    "nonfinite": _Rule(lambda value: value == "error" or _number(-math.inf).holds(value), "'error' or a number"),
    "percentiles": _Rule(
        lambda value: isinstance(value, list) and len(value) == 2 and 0 <= value[0] < value[1] <= 100,
        "two numbers from 0 to 100, the lower one first",
    ),
    "slice_range": _Rule(
        lambda value: isinstance(value, list) and len(value) == 2 and 0 <= value[0] < value[1] <= 1,
        "two numbers from 0 to 1, the lower one first",
    ),
    "patient_pattern": _Rule(lambda value: value is None or isinstance(value, str), "a regular expression, or null"),
    "split": _one_of("train", "val", "test", None),
    "columns": _Rule(lambda value: isinstance(value, dict), "names of the table's columns, such as {'image': 'file'}"),
}  # fmt: skip
"""The rules for keys of the training configurations. Arguments of commands are checked by their own annotations."""


def check_values(config: dict[str, Any]) -> None:
    """Check the plain values of the top-level keys. Expressions and references are not evaluated.

    Example:
        >>> check_values({"batch_size": 0})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: batch_size is 0; it must be a whole number of at least 1
    """
    check_rules(config)
    out = config.get("output_dir")
    if isinstance(out, str) and Path(out).is_file():
        raise MachineError(f"output_dir: {Path(out).name} is a file, not a folder; choose another output_dir")
    device = config.get("device")
    if isinstance(device, str) and not is_formula(device):
        check_device(device)


def check_rules(config: Mapping[str, Any]) -> None:
    """Check the plain values of the top-level keys by :data:`RULES`; a tuple counts as a list.

    Example:
        >>> check_rules({"slice_range": [0.2, 1.2]})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: slice_range is [0.2, 1.2]; it must be two numbers from 0 to 1, the lower ...
    """
    for key, rule in RULES.items():
        value = config.get(key)
        if key not in config or is_formula(value):
            continue
        if value == "???":
            raise ConfigError(f"{key}: is required; give it a value")
        value = list(value) if isinstance(value, tuple) else value
        try:
            is_valid = rule.holds(value)
        except TypeError:
            is_valid = False
        if not is_valid:
            raise ConfigError(f"{key} is {quoted(value)}; it must be {rule.text}")


def check_dimensions(config: dict[str, Any]) -> None:
    """Check that sizes have as many axes as ``spatial_dims``; an overlay for another bundle may change that.

    Example:
        >>> check_dimensions({"spatial_dims": 3, "image_size": [64, 64]})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: image_size is [64, 64], but spatial_dims is 3; give 3 numbers, or omit ...
    """
    dims = config.get("spatial_dims")
    if dims not in (2, 3):
        return
    todo = "omit the overlay or start_from for others; configs/overlays has those that fit"
    for key in ("spacing_mm", "image_size"):
        value = config.get(key, [])
        if isinstance(value, list) and value and len(value) != dims:
            raise ConfigError(f"{key} is {quoted(value)}, but spatial_dims is {dims}; give {dims} numbers, or {todo}")
    if dims == 3 and "slice_axis" in config:
        raise ConfigError(f"slice_axis is a key of 2D bundles, but spatial_dims is 3; {todo}")


def check_views(config: Mapping[str, Any]) -> None:
    """Check that ``agreement_weight`` has what it needs: another view for the encoder, and several images in a batch.

    Example:
        >>> check_views({"agreement_weight": 0.02, "encoder_key": "image", "spatial_dims": 2})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: agreement_weight is 0.02, but the encoder sees the decoder's image ...
    """
    weight = config.get("agreement_weight", 0)
    if weight and config.get("encoder_key") in (None, "image"):
        overlay = "encoder_view_3d" if config.get("spatial_dims") == 3 else "encoder_view"
        raise ConfigError(
            f"agreement_weight is {weight:g}, but the encoder sees the decoder's image (encoder_key); "
            f"add the overlay {overlay}, which gives it another view"
        )
    if weight and config.get("batch_size") == 1:
        raise ConfigError(
            f"agreement_weight is {weight:g}, but batch_size is 1; it needs at least 2 images in a batch: enlarge "
            "batch_size, or set agreement_weight to 0"
        )


def check_image_size(image_size: Sequence[int], divisors: Sequence[int]) -> None:
    """Check that a network's levels can halve images of this size.

    Args:
        image_size: voxels per axis.
        divisors: one number per axis, of which the size must be a multiple.

    Raises:
        ConfigError: they cannot; the message names the nearest usable size.

    Example:
        >>> check_image_size([50, 64], (16, 16))
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: image_size is [50, 64]; the network needs multiples of 16, such as [48, 64]
    """
    if len(image_size) != len(divisors):
        raise ConfigError(
            f"image_size is {quoted(list(image_size))}; a {len(divisors)}D network takes {len(divisors)} sizes"
        )
    if any(size % d or size < 1 for size, d in zip(image_size, divisors, strict=True)):
        nearest = [max(d, round(size / d) * d) for size, d in zip(image_size, divisors, strict=True)]
        multiples = f"multiples of {shown_divisors(divisors)}"
        raise ConfigError(
            f"image_size is {quoted(list(image_size))}; the network needs {multiples}, such as {quoted(nearest)}"
        )


def check_required_values(config: dict[str, Any]) -> None:
    """Check that no key that is used is still ``???``.

    Example:
        >>> check_required_values({"output_dir": "???", "run": {"_target_": "print", "out": "@output_dir"}})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: output_dir: is required; give it a value
    """
    missing = [key for key in config if config[key] == "???" and key in references(config)]
    if config.get("embeddings"):  # train_latent needs only one of the two
        missing = [key for key in missing if key != "dataset_dir"]
    if missing:
        raise ConfigError(f"{missing[0]}: is required; give it a value")


def is_formula(value: Any) -> bool:
    """Whether a value is an expression or a reference, not a plain value."""
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def references(value: Any) -> set[str]:
    """The top-level keys that a part of a configuration refers to.

    Example:
        >>> sorted(references({"rate": "@lr", "steps": ["$@train#epochs * 2", "%gpu"]}))
        ['gpu', 'lr', 'train']
    """
    return {name for text in strings(value) for name in _REFERENCE.findall(text)}


def strings(value: Any) -> Iterator[str]:
    """Every text in a part of a configuration, without the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def check_device(device: str | torch.device) -> None:
    """Check that this machine has a device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        kind = str(device).split(":")[0]
        if kind not in ("cpu", "cuda", "mps", "xpu"):
            raise ConfigError(f"device: there is no {quoted(str(device))}; choose cpu or cuda") from error
        raise MachineError(f"device: {quoted(str(device))} is not usable on this machine; choose cpu") from error
