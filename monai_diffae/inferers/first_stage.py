"""Deterministic reconstruction with a first stage (an AutoencoderKL), as MONAI inferers."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from monai_diffae.networks import FirstStage


class FirstStageInferer(Inferer):
    """Encodes images and decodes the mean of the posterior; for evaluation."""

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: FirstStage, **_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The reconstruction (B, C, *S) of images, and the posterior's mean and sigma (B, C', *S / f)."""
        mean, sigma = network.autoencoder.encode(inputs)
        return network.autoencoder.decode(mean), mean, sigma


class FirstStageReconstructor(Inferer):
    """Returns the reconstruction only; for the ``SupervisedEvaluator`` of a bundle."""

    def __call__(self, inputs: Tensor, network: FirstStage, **_: Any) -> Tensor:  # type: ignore[override]
        """The reconstruction (B, C, *S) of images."""
        return FirstStageInferer()(inputs, network)[0]
