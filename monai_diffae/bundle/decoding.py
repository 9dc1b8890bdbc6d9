"""How a bundle decodes and inverts: a command's settings replace those of the bundle's configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from monai_diffae.diffusion import Solver
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer

# Components have a configuration or weights of their own, the batch size does not change the result, and ``clip_range``
# is None without ``clip``.
_NOT_SETTINGS = ("schedule", "first_stage", "fast_decoder", "batch_size", "clip")


def inferer_overrides(overrides: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """Overrides of a bundle's configuration, extended by settings of its inferer, of which None means the bundle's.

    Example:
        >>> inferer_overrides({}, steps=50, solver="unipc", spacing=None)
        {'inferer#invert_steps': None, 'inferer#steps': 50, 'inferer#solver': 'unipc'}
    """
    if (settings.get("decoder") or overrides.get("inferer#decoder")) == "fast":
        unused = next((name for name in ("steps", "solver", "spacing") if settings.get(name) is not None), None)
        if unused is not None:
            raise ConfigError(f"{unused}: has no effect on the fast decoder; omit it, or choose decoder exact")
    # If ``steps`` is given, it also sets the number of inversion steps, instead of the bundle's.
    default = {} if settings.get("steps") is None else {"inferer#invert_steps": None}
    given = {f"inferer#{key}": value for key, value in settings.items() if value is not None}
    return {**default, **overrides, **given}


def inferer_settings(inferer: DiffusionAutoencoderInferer) -> dict[str, Any]:
    """How an inferer decodes and inverts, as plain values, whether a command or the configuration chose them.

    All of its arguments are included, so a result's record also names an argument that is added later.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> settings = inferer_settings(DiffusionAutoencoderInferer(DiffusionSchedule(), solver="ddim", steps=5))
        >>> settings["solver"], settings["steps"], settings["invert_steps"], settings["spacing"]
        ('ddim', 5, 5, 'logsnr')
    """
    arguments = [name for name in inspect.signature(type(inferer)).parameters if name not in _NOT_SETTINGS]
    return {
        **{name: getattr(inferer, name) for name in arguments},
        "solver": _solver_name(inferer.solver),
        "spacing": inferer.spacing or inferer.schedule.spacing,
        "clip_range": None if inferer.clip_range is None else list(inferer.clip_range),
    }


def _solver_name(solver: Solver | functools.partial[Tensor]) -> str:
    """``unipc``, or ``unipc(order=2)`` for a functools.partial; a configuration can name any callable."""
    if isinstance(solver, functools.partial):
        options = ", ".join(f"{name}={value}" for name, value in solver.keywords.items())
        return f"{_solver_name(solver.func)}({options})"
    return str(getattr(solver, "__name__", type(solver).__name__))
