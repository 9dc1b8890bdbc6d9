"""What a solver is: its signature, the facts that it declares, and the registry of solvers by name.

:mod:`monai_diffae.diffusion.solvers` fills the registry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from monai_diffae.diffusion.integration import ClipRange, Denoiser, StepCallback
from monai_diffae.diffusion.schedule import DiffusionSchedule
from monai_diffae.errors import ConfigError


class Solver(Protocol):
    """The signature of a solver."""

    def __call__(
        self,
        denoise: Denoiser,
        schedule: DiffusionSchedule,
        x: Tensor,
        levels: Sequence[int],
        *,
        clip_range: ClipRange = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Move x (B, C, *S) from the first of ``levels`` to the last one.

        Args:
            denoise: the network, with its z_sem bound.
            schedule: the noise schedule that the network was trained with.
            x: the images at the first level.
            levels: the levels to visit, in this order.
            clip_range: clip x0 to this range at every step and recompute eps; None: no clipping.
            callback: called after each step.
        """


@dataclass(frozen=True, kw_only=True)
class SolverFacts:
    """What inferers, benchmarks and tests must know about a solver.

    Attributes:
        order: order of convergence; the error is proportional to steps ** -order.
        evaluations_per_step: network evaluations per step. The last step, to x0, takes one with every solver, because
            the network knows no level without noise.
        inversion_order: order of the :func:`~monai_diffae.diffusion.implicit_inversion` that undoes the solver: 1 for
            a first-order solver, otherwise 3.
        runs_upwards: whether the levels may also rise, from x0 to x_T.

    Example:
        >>> facts = SolverFacts(order=2, evaluations_per_step=2)
        >>> facts.steps(20), facts.evaluations(10)
        (10, 19)
    """

    order: int = 1
    evaluations_per_step: int = 1
    inversion_order: int = 3
    runs_upwards: bool = False

    def steps(self, evaluations: int) -> int:
        """How many steps to x0 can be made with this many network evaluations (at least 1)."""
        return (evaluations - 1) // self.evaluations_per_step + 1

    def evaluations(self, steps: int) -> int:
        """How many network evaluations this many steps to x0 take."""
        return self.evaluations_per_step * (steps - 1) + 1


SOLVERS: dict[str, Solver] = {}
"""All registered solvers by name. Import it from :mod:`monai_diffae.diffusion`, where it is filled."""

_S = TypeVar("_S", bound=Solver)


def register_solver(name: str, facts: SolverFacts) -> Callable[[_S], _S]:
    """Decorator that adds a solver to :data:`SOLVERS` and attaches its facts to it.

    Raises:
        ConfigError: another solver has this name.
    """

    def register(solver: _S) -> _S:
        if name in SOLVERS:
            raise ConfigError(f"there is already a solver called {name!r}; choose another name")
        solver.facts = facts  # type: ignore[attr-defined]
        SOLVERS[name] = solver
        return solver

    return register


def solver_facts(solver: Solver) -> SolverFacts:
    """The facts that a solver declares; a function that declares none has the defaults of :class:`SolverFacts`.

    Example:
        >>> from monai_diffae.diffusion import heun
        >>> solver_facts(functools.partial(heun, clip_range=(-1, 1))).evaluations_per_step
        2
    """
    function = solver.func if isinstance(solver, functools.partial) else solver
    facts: SolverFacts = getattr(function, "facts", SolverFacts())
    return facts
