"""What a first stage gives back of images, without drawing anything, as MONAI inferers."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from monai_diffae.networks import FirstStage


class FirstStageInferer(Inferer):
    """Encodes images to their posterior and decodes its mean: what an evaluator measures."""

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: FirstStage, **_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The reconstruction (B, C, *S) of images, and the posterior's mean and sigma (B, C', *S / f)."""
        mean, sigma = network.autoencoder.encode(inputs)
        return network.autoencoder.decode(mean), mean, sigma


class FirstStageReconstructor(Inferer):
    """The reconstruction alone: what a ``SupervisedEvaluator`` of a bundle writes."""

    def __call__(self, inputs: Tensor, network: FirstStage, **_: Any) -> Tensor:  # type: ignore[override]
        """The reconstruction (B, C, *S) of images."""
        return FirstStageInferer()(inputs, network)[0]
