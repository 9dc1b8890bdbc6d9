"""Ignite metrics of trainings: the validation loss, how much the decoder uses z_sem, and copies of the training set."""

import logging
import math
from collections.abc import Callable, Sequence

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from monai_diffae.errors import ConfigError
from monai_diffae.latents import copying_ratio

logger = logging.getLogger(__name__)


class _LossSums(Metric):
    """The sums of losses over all validation images, and the number of images."""

    @reinit__is_reduced
    def reset(self) -> None:
        """Start a new validation."""
        self.sums = torch.zeros(len(self.required_output_keys or ()), dtype=torch.float64, device=self._device)
        self.count = torch.zeros((), dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: Sequence[Tensor]) -> None:
        """Add a batch of the evaluator's output: losses (B,)."""
        self.sums += torch.stack([losses.detach().double().sum() for losses in output]).to(self._device)
        self.count += output[0].numel()


class ValidationLoss(_LossSums):
    """The mean over all validation images of ``loss``, or of ``loss_other`` (with another image's z_sem)."""

    def __init__(self, key: str = "loss", device: str | torch.device = "cpu") -> None:
        self.required_output_keys = (key,)
        super().__init__(device=device)

    @sync_all_reduce("sums", "count")
    def compute(self) -> float:
        """The mean; NaN without any value."""
        return float(self.sums[0] / self.count)


class ZSemUsage(_LossSums):
    """The ratio of the loss with another image's z_sem to the loss with each image's own; at 1, z_sem is ignored.

    It is NaN if there is only one image, because there is no other one.

    Example:
        >>> usage = ZSemUsage()
        >>> usage.update((torch.tensor([1.0, 1.0]), torch.tensor([2.0, 4.0])))
        >>> usage.compute()
        3.0
    """

    required_output_keys = ("loss", "loss_other")

    @sync_all_reduce("sums", "count")
    def compute(self) -> float:
        """The ratio of the two sums."""
        return float(self.sums[1] / self.sums[0]) if self.count > 1 else math.nan


class CopyingRatio(Metric):
    """The :func:`~monai_diffae.latents.copying_ratio` of samples that the network draws after each validation.

    The z_sem of the validation are the held-out cases, ``train`` those of the training, normalised (K, D). If the ratio
    is not defined (half of the held-out cases are in the training set, or z_sem is not finite), it is NaN and one
    warning is logged; training continues.
    """

    def __init__(
        self, sample: Callable[[int], Tensor], train: Tensor, num_samples: int = 256, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(output_transform=lambda output: output["image"], device=device)
        self.sample, self.train, self.num_samples, self.has_warned = sample, train, num_samples, False

    @reinit__is_reduced
    def reset(self) -> None:
        """Start a new validation."""
        self.held_out: list[Tensor] = []

    @reinit__is_reduced
    def update(self, output: Tensor) -> None:
        """Add a batch of held-out z_sem (B, D)."""
        self.held_out.append(output.detach())

    def compute(self) -> float:
        """Draw samples and compute the ratio."""
        samples, held_out = self.sample(self.num_samples), torch.cat(self.held_out)
        try:
            return copying_ratio(*(z.cpu().numpy() for z in (samples, self.train, held_out)))
        except ConfigError as error:
            if not self.has_warned:
                logger.warning("copying_ratio is nan: %s", error)
            self.has_warned = True
            return math.nan
