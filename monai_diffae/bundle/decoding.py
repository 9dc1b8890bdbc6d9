"""How a bundle decodes and inverts: settings of a command over those of its configuration."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, get_args

from torch import Tensor

from monai_diffae.diffusion import SOLVERS, Solver, Spacing
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer, Inversion


def inferer_overrides(
    overrides: Mapping[str, Any] | None, steps: int | None, invert_steps: int | None = None, **names: str | None
) -> dict[str, Any]:
    """The overrides of a bundle's config, with what was said in words of its own.

    Args:
        overrides: ids of the config and their values.
        steps: network evaluations for decoding.
        invert_steps: network evaluations for inversion; None: those that go with ``steps``, where that is given.
        names: the inferer's ``solver``, ``inversion`` and ``spacing``; None: the bundle's.

    Raises:
        ConfigError: no such solver, inversion or spacing.

    Example:
        >>> inferer_overrides({}, 50, solver="unipc")
        {'inferer#invert_steps': None, 'inferer#num_steps': 50, 'inferer#solver': 'unipc'}
    """
    choices = {"solver": SOLVERS, "inversion": get_args(Inversion), "spacing": get_args(Spacing)}
    for key, name in names.items():
        if name is not None and name not in choices[key]:
            raise ConfigError(f"{key} is {name!r}; choose one of: {', '.join(choices[key])}")
    values = {"num_steps": steps, "invert_steps": invert_steps, **names}
    said = {f"inferer#{key}": value for key, value in values.items() if value is not None}
    # those that go with ``steps``, not the bundle's
    default = {} if steps is None else {"inferer#invert_steps": None}
    return {**default, **(overrides or {}), **said}


def inferer_settings(inferer: DiffusionAutoencoderInferer) -> dict[str, Any]:
    """How an inferer decodes and inverts, as plain values: what it does, whoever said so.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> settings = inferer_settings(DiffusionAutoencoderInferer(DiffusionSchedule(), solver="euler", num_steps=5))
        >>> settings["solver"], settings["steps"], settings["invert_steps"], settings["spacing"]
        ('ddim', 5, 5, 'logsnr')
    """
    return {
        "solver": _solver_name(inferer.solver),
        "steps": inferer.num_steps,
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
