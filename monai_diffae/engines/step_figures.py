"""The loss and the gradients' norm of a training step, checked without letting the device wait for the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_diffae.errors import DivergenceError

_MOST_NAMED, _LONGEST_ID = 3, 18  # cases of a batch in a message, and characters of their ids


class StepFigures:
    """The figures of one step, which must be finite. They are copied to the host while the device computes further.

    Example:
        >>> figures = StepFigures(7, ["case-1"], torch.tensor(float("nan")))
        >>> figures.check()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        monai_diffae.errors.DivergenceError: the loss is not finite at step 7 (cases case-1); the last checkpoint is ...
    """

    def __init__(self, step: int, ids: Sequence[Any], loss: Tensor) -> None:
        self.step = step
        self.ids = ids
        self._loss = HostCopy(loss)
        self._grad_norm: HostCopy | None = None

    def add_grad_norm(self, norm: Tensor) -> None:
        """Add the norm of the gradients with which the step updated the weights."""
        self._grad_norm = HostCopy(norm)

    def check(self) -> None:
        """Check the figures. This waits for the device if it has not computed them yet."""
        if not math.isfinite(self._loss.read()):
            raise diverged(f"the loss is not finite at step {self.step} ({_named(self.ids)})")
        if self._grad_norm is not None and not math.isfinite(norm := self._grad_norm.read()):
            raise diverged(f"the gradients are not finite at step {self.step} (norm {norm:g})")


class HostCopy:
    """A number on its way from a device to the host; it must not change later.

    Example:
        >>> HostCopy(torch.tensor(2.5)).read()
        2.5
    """

    def __init__(self, value: Tensor) -> None:
        # To pinned memory, from a GPU. On other devices nothing would tell when the number has arrived.
        self._value = value.detach().to("cpu", non_blocking=value.is_cuda)
        self._arrival = torch.cuda.current_stream(value.device).record_event() if value.is_cuda else None

    def read(self) -> float:
        """The number; waits until it has arrived."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return float(self._value)


def diverged(what: str) -> DivergenceError:
    """The error that ends a training because ``what`` (with its step) is no longer finite.

    Example:
        >>> diverged("the loss is not finite at step 7")  # doctest: +ELLIPSIS
        DivergenceError('the loss is not finite at step 7; the last checkpoint is kept. Use a lower learning_rate, ...')
    """
    return DivergenceError(f"{what}; the last checkpoint is kept. Use a lower learning_rate, or precision fp32")


def _named(ids: Sequence[Any]) -> str:
    """The first cases of a batch, for a message of one line.

    Example:
        >>> _named(["a", "b", "c", "d", "e"])
        'cases a, b, c and 2 others'
    """
    names = ", ".join(str(name)[:_LONGEST_ID] for name in ids[:_MOST_NAMED]) or "unknown"
    others = len(ids) - _MOST_NAMED
    return f"cases {names} and {others} others" if others > 0 else f"cases {names}"
