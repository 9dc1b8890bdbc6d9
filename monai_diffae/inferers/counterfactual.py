"""The smallest change of codes that moves a score to a requested value."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Value = Callable[[Tensor], Tensor]
"""A function from changes (N, K) to their scores (N,)."""
Evaluate = Callable[[Tensor], tuple[float, Tensor]]
"""A function from one change (K,) to its score and the gradient (K,) of the score."""

_MOST_STEPS = 20
_OVERSHOOT = 0.02  # of the way to the target, so that rounding does not leave the score just before it
_CONVERGED = 0.02  # relative change
_STEPS_TO_LIMIT = 8  # of full length lead to the largest change
_MOST_HALVINGS = 4
_DIFFERENCE = 0.1  # standard deviations of the training cases


@dataclass(frozen=True)
class Change:
    """The shortest change found that reaches the target, else the one that comes closest to it."""

    change: Tensor  # (K,)
    value: float
    reached: bool
    steps: int  # evaluations of the gradient
    is_flat: bool  # the search ended where the score has no gradient

    def rank(self, towards: float) -> tuple[bool, float]:
        """What is best: the shortest change that reaches the target, else the one that comes closest to it."""
        return self.reached, -float(self.change.norm()) if self.reached else self.value * towards


def autograd(value: Value) -> Evaluate:
    """The score and its gradient by backpropagation."""

    def evaluate(change: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            leaf = change.detach().clone().requires_grad_()
            score = value(leaf[None])[0]
            (gradient,) = torch.autograd.grad(score, leaf)
        return float(score.detach()), gradient

    return evaluate


def finite_differences(value: Value) -> Evaluate:
    """The score and its gradient by central differences, for a model that has no gradient."""

    @torch.no_grad()
    def evaluate(change: Tensor) -> tuple[float, Tensor]:
        steps = _DIFFERENCE * torch.eye(len(change), dtype=change.dtype, device=change.device)
        scores = value(torch.cat([change[None], change + steps, change - steps]))
        above, below = scores[1:].chunk(2)
        return float(scores[0]), (above - below) / (2 * _DIFFERENCE)

    return evaluate


def find_change(
    evaluate: Evaluate, num: int, target: float, *, largest: float, device: str | torch.device = "cpu"
) -> Change:
    """Find the shortest change (K,), at most ``largest``, that moves a score to a target."""
    # Each step goes to the point nearest to 0 at which the linearised score has the target's value (Rackwitz and
    # Fiessler, Computers & Structures 9, 1978), and is halved until length and distance to the target together fall
    # (Zhang and Der Kiureghian, 1995).
    change = torch.zeros(num, device=device)
    value, gradient = evaluate(change)
    towards, steps = 1.0 if target >= value else -1.0, 1
    aim, longest = target + _OVERSHOOT * (target - value), largest / _STEPS_TO_LIMIT
    best = Change(change, value, value == target, steps, False)
    while steps < _MOST_STEPS and value != aim:
        slope = float(gradient.norm())
        if not slope > 0:  # also NaN
            return replace(best, steps=steps, is_flat=True)
        step = _shortened(gradient * ((gradient @ change + aim - value) / slope**2) - change, longest)
        penalty = 2 * float((change + step).norm().clamp(min=float(change.norm()))) / slope
        merit, before = float(change.square().sum()) / 2 + penalty * abs(aim - value), change
        for halvings in range(_MOST_HALVINGS):
            change = _shortened(before + step / 2**halvings, largest)
            value, gradient = evaluate(change)
            steps += 1
            reached = (value - target) * towards >= 0
            new = Change(change, value, reached, steps, False)
            best = max(best, new, key=lambda each: each.rank(towards))
            if float(change.square().sum()) / 2 + penalty * abs(aim - value) < merit:
                break
        if best.reached and float((change - before).norm()) <= _CONVERGED * float(change.norm()):
            break
    return replace(best, steps=steps)


def _shortened(vector: Tensor, longest: float) -> Tensor:
    """The vector (K,), at most so long."""
    return vector * min(1.0, longest / max(float(vector.norm()), 1e-12))
