"""Whether samples of z_sem are new, or those of the training set again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced
from torch import Tensor


def copying_ratio(samples: Tensor, held_out: Tensor, train: Tensor) -> float:
    """How near samples come to the training set, held-out cases being 1; far below 1, the model copies.

    The median distance of ``samples`` to the nearest z_sem of ``train`` over that of ``held_out``.

    Args:
        samples: normalised z_sem (N, D).
        held_out: of other patients (M, D).
        train: those that the model was trained on (K, D).

    Example:
        >>> train = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
        >>> held_out = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
        >>> copies = train[:100] + 0.1
        >>> round(copying_ratio(held_out, held_out, train), 1), round(copying_ratio(copies, held_out, train), 1)
        (1.0, 0.2)
    """
    of_samples, of_held_out = (torch.cdist(z, train).amin(dim=1).median() for z in (samples, held_out))
    return float(of_samples / of_held_out)


class CopyingRatio(Metric):
    """:func:`copying_ratio` of what the network samples after each validation, whose images are the held-out z_sem.

    Args:
        sample: a number of samples -> normalised z_sem (N, D).
        train: normalised z_sem (K, D) of the training set.
        num_samples: how many are drawn.
        device: where distances are computed.
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

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget what was seen."""
        self.held_out: list[Tensor] = []

    @reinit__is_reduced
    def update(self, output: Tensor) -> None:
        """Add a batch of held-out z_sem (B, D)."""
        self.held_out.append(output.detach())

    def compute(self) -> float:
        """Draw samples and compare."""
        samples, held_out = self.sample(self.num_samples), torch.cat(self.held_out)
        return copying_ratio(*(z.to(self._device, torch.float32) for z in (samples, held_out, self.train)))
