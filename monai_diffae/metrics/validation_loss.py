"""The validation loss, and whether the decoder uses z_sem: ignite metrics, right across ranks."""

from __future__ import annotations

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor


class ValidationLoss(Metric):
    """The mean of one entry of the evaluator's output over all validation images.

    Args:
        key: ``loss`` (each image's own z_sem) or ``loss_other`` (another image's).
        device: where sums are kept.
    """

    def __init__(self, key: str = "loss", device: str | torch.device = "cpu") -> None:
        super().__init__(output_transform=lambda output: output[key], device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget what was seen."""
        self.total = torch.zeros((), dtype=torch.float64, device=self._device)
        self.count = torch.zeros((), dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: Tensor) -> None:
        """Add a batch: values (B,)."""
        values = output.detach().double().to(self._device)
        self.total += values.sum()
        self.count += values.numel()

    @sync_all_reduce("total", "count")
    def compute(self) -> float:
        """The mean; NaN where nothing was seen."""
        return float(self.total / self.count)


class ZSemUsage(Metric):
    """The loss with another image's z_sem over the loss with each image's own; 1: z_sem is ignored.

    Args:
        device: where sums are kept.

    Example:
        >>> usage = ZSemUsage()
        >>> usage.update((torch.tensor([1.0, 1.0]), torch.tensor([2.0, 4.0])))
        >>> usage.compute()
        3.0
    """

    required_output_keys = ("loss", "loss_other")

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget what was seen."""
        self.own = torch.zeros((), dtype=torch.float64, device=self._device)
        self.other = torch.zeros((), dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Add a batch of the evaluator's output: own and other losses, (B,) each."""
        own, other = output
        self.own += own.detach().double().sum().to(self._device)
        self.other += other.detach().double().sum().to(self._device)

    @sync_all_reduce("own", "other")
    def compute(self) -> float:
        """The ratio of the two sums."""
        return float(self.other / self.own)
