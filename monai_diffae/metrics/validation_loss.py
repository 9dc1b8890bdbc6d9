"""Ignite metrics, reduced across ranks: the validation loss, and how much the decoder uses z_sem."""

from __future__ import annotations

import math

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor


class ValidationLoss(Metric):
    """The mean over all validation images of one entry of the evaluator's output.

    Args:
        key: ``loss`` (with each image's own z_sem) or ``loss_other`` (with another image's).
        device: device of the sums.
    """

    def __init__(self, key: str = "loss", device: str | torch.device = "cpu") -> None:
        super().__init__(output_transform=lambda output: output[key], device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Start a new validation."""
        self.total = torch.zeros((), dtype=torch.float64, device=self._device)
        self.count = torch.zeros((), dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: Tensor) -> None:
        """Add a batch of values (B,)."""
        values = output.detach().double().to(self._device)
        self.total += values.sum()
        self.count += values.numel()

    @sync_all_reduce("total", "count")
    def compute(self) -> float:
        """The mean; NaN without any value."""
        return float(self.total / self.count)


class ZSemUsage(Metric):
    """The ratio of the loss with another image's z_sem to the loss with each image's own; at 1, z_sem is ignored.

    It is NaN if there is only one image, because there is no other one.

    Args:
        device: device of the sums.

    Example:
        >>> usage = ZSemUsage()
        >>> usage.update((torch.tensor([1.0, 1.0]), torch.tensor([2.0, 4.0])))
        >>> usage.compute()
        3.0
    """

    required_output_keys = ("loss", "loss_other")

    @reinit__is_reduced
    def reset(self) -> None:
        """Start a new validation."""
        self.own = torch.zeros((), dtype=torch.float64, device=self._device)
        self.other = torch.zeros((), dtype=torch.float64, device=self._device)
        self.count = torch.zeros((), dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Add a batch of the evaluator's output: the losses with the own and with another z_sem, (B,) each."""
        own, other = output
        self.own += own.detach().double().sum().to(self._device)
        self.other += other.detach().double().sum().to(self._device)
        self.count += own.numel()

    @sync_all_reduce("own", "other", "count")
    def compute(self) -> float:
        """The ratio of the two sums."""
        return float(self.other / self.own) if self.count > 1 else math.nan
