"""How a bundle decodes and inverts: settings of a command over those of its configuration."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from monai_diffae.diffusion import Solver
from monai_diffae.inferers import DiffusionAutoencoderInferer


def inferer_overrides(overrides: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """A bundle's overrides with those that settings of the inferer amount to.

    Args:
        overrides: ids of the configuration and their values.
        settings: arguments of the inferer, such as ``steps`` or ``solver``; None: the bundle's.

    Example:
        >>> inferer_overrides({}, steps=50, solver="unipc", spacing=None)
        {'inferer#invert_steps': None, 'inferer#steps': 50, 'inferer#solver': 'unipc'}
    """
    # the number of inversion steps goes with ``steps`` if that is given, not with the bundle's
    default = {} if settings.get("steps") is None else {"inferer#invert_steps": None}
    given = {f"inferer#{key}": value for key, value in settings.items() if value is not None}
    return {**default, **overrides, **given}


def inferer_settings(inferer: DiffusionAutoencoderInferer) -> dict[str, Any]:
    """How an inferer decodes and inverts, as plain values: what it does, whoever said so.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> settings = inferer_settings(DiffusionAutoencoderInferer(DiffusionSchedule(), solver="ddim", steps=5))
        >>> settings["solver"], settings["steps"], settings["invert_steps"], settings["spacing"]
        ('ddim', 5, 5, 'logsnr')
    """
    return {
        "solver": _solver_name(inferer.solver),
        "steps": inferer.steps,
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
