"""Training and validation of a first stage: an autoencoder whose latents are sampled around their mean."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from torch import Tensor

from monai_diffae.engines.evaluator import LossEvaluator
from monai_diffae.engines.precision import autocast
from monai_diffae.engines.trainer import ResumableTrainer


def kl_divergence(mean: Tensor, sigma: Tensor) -> Tensor:
    """The KL divergence of each N(mean, sigma) from N(0, 1), in nats: (B,), the mean over the values of a latent."""
    mean, variance = mean.float(), sigma.float().square()
    return 0.5 * (mean.square() + variance - variance.log() - 1).flatten(1).mean(dim=1)


class FirstStageTrainer(ResumableTrainer):
    """Trains a :class:`~monai_diffae.networks.FirstStage` with its reconstruction's loss and a small KL term.

    Small values of ``kl_weight`` let the latents drift apart, large ones blur. Other arguments are those of
    :class:`ResumableTrainer`.
    """

    def __init__(self, *, kl_weight: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kl_weight = kl_weight

    def image_losses(self, batchdata: Mapping[str, Any]) -> Tensor:
        """The loss of each image (B,)."""
        images, *_ = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        images = images.to(memory_format=self.memory_format)
        with autocast(self.state.device, self.dtype):
            reconstruction, mean, sigma = self.inferer(images, self.network, draw_noise=batchdata["draws"].noise)
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        error: Tensor = self.loss_function(reconstruction.float(), images).flatten(1).mean(dim=1)
        return error + self.kl_weight * kl_divergence(mean, sigma)


class FirstStageEvaluator(LossEvaluator):
    """Evaluates a first stage on whole images, encoded to the mean of their latents and decoded.

    Its output per batch: ``loss`` (B,), the mean absolute error, and ``kl`` (B,), :func:`kl_divergence`. ``inferer`` is
    a :class:`~monai_diffae.inferers.FirstStageInferer`.
    """

    @torch.no_grad()
    def _iteration(self, engine: SupervisedEvaluator, batchdata: Mapping[str, Tensor]) -> dict[str, Tensor]:
        images, *_ = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        self.network.eval()
        with autocast(self.state.device, self.dtype):
            reconstruction, mean, sigma = self.inferer(images, self.network)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        output = {
            "loss": (reconstruction.float() - images).abs().flatten(1).mean(dim=1),
            "kl": kl_divergence(mean, sigma),
        }
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return output
