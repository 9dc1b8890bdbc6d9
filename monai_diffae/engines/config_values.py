"""What the plain values of a training config may be, said before any scan is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from monai_diffae.errors import ConfigError, MachineError


@dataclass(frozen=True)
class _Rule:
    holds: Callable[[Any], bool]
    text: str


def _whole(least: int, or_null: bool = False) -> _Rule:
    def holds(value: Any) -> bool:
        return (or_null and value is None) or (isinstance(value, int) and value is not True and value >= least)

    return _Rule(holds, f"a whole number of at least {least}" + (", or null" if or_null else ""))


def _number(low: float, high: float = math.inf, text: str = "", or_null: bool = False) -> _Rule:
    def holds(value: Any) -> bool:
        if value is None:
            return or_null
        return isinstance(value, (int, float)) and math.isfinite(value) and low <= value < high

    return _Rule(holds, text or f"a number of at least {low:g}")


_BOOL = _Rule(lambda value: isinstance(value, bool), "True or False")
_NAMES = _Rule(lambda value: isinstance(value, list) and bool(value), "a list of names")

RULES: dict[str, _Rule] = {
    **dict.fromkeys(("overwrite", "mlflow", "channels_last"), _BOOL),
    **dict.fromkeys(
        ("max_epochs", "batch_size", "val_batch_size", "accumulation_steps", "val_interval", "report_every",
         "picture_steps", "slice_step", "in_channels", "world_size"), _whole(1)
    ),
    **dict.fromkeys(("seed", "num_workers", "warmup_steps", "num_pictures", "rank"), _whole(0)),
    "early_stop_patience": _whole(1, or_null=True),
    **dict.fromkeys(("learning_rate", "weight_decay", "checkpoint_minutes", "cache_gib"), _number(0)),
    "max_grad_norm": _number(1e-12, text="a number above 0, or null", or_null=True),
    "ema_decay": _number(0, 1, "a number from 0 to below 1"),
    **dict.fromkeys(("val_fraction", "test_fraction"), _number(0, 1, "a number from 0 to below 1")),
    "spatial_dims": _Rule(lambda value: value in (2, 3), "2 or 3"),
    "image_keys": _NAMES,
    "image_size": _Rule(
        lambda value: isinstance(value, list) and len(value) in (2, 3) and all(_whole(1).holds(v) for v in value),
        "a list of whole numbers, such as [64, 64]",
    ),
    "on_bad_scan": _Rule(lambda value: value in ("skip", "stop"), "'skip' or 'stop'"),
    "nonfinite": _Rule(lambda value: value == "error" or _number(-math.inf).holds(value), "'error' or a number"),
    "percentiles": _Rule(
        lambda value: isinstance(value, list) and len(value) == 2 and 0 <= value[0] < value[1] <= 100,
        "two numbers from 0 to 100, the lower one first",
    ),
}  # fmt: skip


def check_values(config: dict[str, Any]) -> None:
    """Refuse values of the top-level keys that make no sense; formulas and references are not looked into.

    Raises:
        ConfigError: names the key, its value and what it may be.
        MachineError: ``device`` is not there, or ``output_dir`` is a file.

    Example:
        >>> check_values({"batch_size": 0})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: batch_size is 0; it must be a whole number of at least 1
    """
    for key, rule in RULES.items():
        value = config.get(key)
        if key not in config or is_formula(value):
            continue
        try:
            is_right = rule.holds(value)
        except TypeError:
            is_right = False
        if not is_right:
            raise ConfigError(f"{key} is {value!r}; it must be {rule.text}")
    out = config.get("output_dir")
    if isinstance(out, str) and Path(out).is_file():
        raise MachineError(f"output_dir: {Path(out).name} is a file, not a folder; name another output_dir")
    device = config.get("device")
    if isinstance(device, str) and not is_formula(device):
        check_device(device)


def is_formula(value: Any) -> bool:
    """Whether a value is an expression or a reference, not something that a user typed in plain."""
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def check_device(device: str | torch.device) -> None:
    """Refuse a device that this machine has not.

    Raises:
        ConfigError: there is no such kind of device.
        MachineError: it is not there.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        kind = str(device).split(":")[0]
        if kind not in ("cpu", "cuda", "mps", "xpu"):
            raise ConfigError(f"device: there is no {str(device)!r}; choose cpu or cuda") from error
        raise MachineError(f"device: {str(device)!r} is not usable on this machine; choose cpu") from error
