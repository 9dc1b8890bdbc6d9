"""Reconstruction as a MONAI inferer, for the command ``reconstruct`` and for the evaluator of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import ConfigError
from monai_diffae.inferers.autoencoding import DiffusionAutoencoderInferer, ReconstructionMode
from monai_diffae.inferers.exact_encoding import encode_exactly


class Reconstructor(Inferer):
    """Encodes and decodes images.

    Args:
        inferer: encodes, inverts and decodes.
        mode: ``x_T`` decodes with each image's own inverted x_T (near-exact); ``z_sem`` with Gaussian noise.
        seed: random seed of that noise, which is a function of the seed and the case's id.

    Raises:
        ConfigError: the mode does not exist.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> from monai_diffae.networks import build_autoencoder
        >>> network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
        >>> reconstruct = Reconstructor(DiffusionAutoencoderInferer(DiffusionSchedule(), steps=2), mode="z_sem")
        >>> reconstruct(torch.zeros(2, 1, 16, 16), network.eval(), ids=["case-1", "case-2"]).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(self, inferer: DiffusionAutoencoderInferer, mode: ReconstructionMode = "x_T", seed: int = 0) -> None:
        if mode not in ("x_T", "z_sem"):
            raise ConfigError(f"mode: '{mode}' is not one of x_T, z_sem")
        self.inferer, self.mode, self.seed = inferer, mode, seed

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        inputs: Tensor,
        network: nn.Module,
        condition: Tensor | None = None,
        ids: Sequence[str] | None = None,
        **_: Any,
    ) -> Tensor:
        """Reconstruct images.

        Args:
            inputs: images (B, C, *S) in the model's range.
            network: the trained autoencoder, in evaluation mode.
            condition: the images that the encoder sees; None: ``inputs``.
            ids: the cases' ids, for the noise; None: all images get the same noise.

        Returns:
            The reconstructions (B, C, *S).
        """
        z_sem = encode_exactly(inputs if condition is None else condition, self.inferer, network)
        return self.decode(inputs, network, z_sem, ids)[0]

    @torch.no_grad()
    def decode(
        self, images: Tensor, network: nn.Module, z_sem: Tensor, ids: Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode z_sem (B, D) of images; the other arguments are those of a call.

        Returns:
            The reconstructions (B, C, *S), and the x_T that they were decoded with.
        """
        if self.mode == "x_T":
            x_T, decoded = self.inferer.round_trip(images, network, z_sem)
            return decoded, x_T
        indices = [0] if ids is None else [seed_of(name) for name in ids]
        noise = image_noise(self.inferer.x_T_shape(images.shape[1:]), self.seed, indices)
        x_T = noise.to(images).expand(len(images), *noise.shape[1:])
        return self.inferer.decode(z_sem, x_T, network), x_T
