"""Whether generated z_sem copy the training set."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced
from torch import Tensor

from monai_diffae.errors import ConfigError
from monai_diffae.latents import copying_ratio

logger = logging.getLogger(__name__)


class CopyingRatio(Metric):
    """The :func:`~monai_diffae.latents.copying_ratio` of samples that the network draws after each validation.

    The z_sem of the validation are the held-out cases. If the ratio is not defined (half of the held-out cases are in
    the training set, or z_sem is not finite), it is NaN and one warning is logged; training continues.

    Args:
        sample: draws a number of samples: normalised z_sem (N, D).
        train: normalised z_sem (K, D) of the training set.
        num_samples: number of samples to draw.
        device: device of the metric.
    """

    def __init__(
        self,
        sample: Callable[[int], Tensor],
        train: Tensor,
        num_samples: int = 256,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(output_transform=lambda output: output["image"], device=device)
        self.sample = sample
        self.train = train
        self.num_samples = num_samples
        self.has_warned = False

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
