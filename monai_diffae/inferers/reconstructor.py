"""Reconstruction as a MONAI inferer, for the ``SupervisedEvaluator`` of a bundle."""

# tested in tests/inferers/test_autoencoding.py

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from monai_diffae.errors import ConfigError
from monai_diffae.inferers.autoencoding import DiffusionAutoencoderInferer, ReconstructionMode


class Reconstructor(Inferer):
    """Encodes and decodes images.

    Args:
        inferer: the inferer that encodes, inverts and decodes.
        mode: ``x_T``: near-exact, with each image's own x_T; ``z_sem``: from z_sem and the same noise for all images,
            so that differences between results come from z_sem.
        seed: seed of this noise.

    Raises:
        ConfigError: the mode is unknown.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> from monai_diffae.networks import build_autoencoder
        >>> network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
        >>> reconstruct = Reconstructor(DiffusionAutoencoderInferer(DiffusionSchedule(), steps=2), mode="z_sem")
        >>> reconstruct(torch.zeros(2, 1, 16, 16), network.eval()).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(self, inferer: DiffusionAutoencoderInferer, mode: ReconstructionMode = "x_T", seed: int = 0) -> None:
        if mode not in ("x_T", "z_sem"):
            raise ConfigError(f"mode: '{mode}' is not one of x_T, z_sem")
        self.inferer, self.mode, self.seed = inferer, mode, seed

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: nn.Module, condition: Tensor | None = None, **_: Any
    ) -> Tensor:
        """The reconstruction (B, C, *S) of images.

        Args:
            inputs: images (B, C, *S) in the model's range.
            network: the trained autoencoder, in evaluation mode.
            condition: the images that the encoder is given; None: ``inputs``.
        """
        z_sem = self.inferer.encode(inputs if condition is None else condition, network)
        if self.mode == "x_T":
            return self.inferer.round_trip(inputs, network, z_sem)[1]
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((1, *self.inferer.x_T_shape(inputs.shape[1:])), generator=generator)
        x_T = noise.to(inputs).expand(len(inputs), *noise.shape[1:])
        return self.inferer.decode(z_sem, x_T, network)
