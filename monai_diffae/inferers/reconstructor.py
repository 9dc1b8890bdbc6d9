"""Reconstruction as a MONAI inferer, for the command ``reconstruct`` and for the evaluator of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from monai_diffae.diffusion.integration import StepCallback
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import ConfigError, quoted
from monai_diffae.inferers.autoencoding import DiffusionAutoencoderInferer, ReconstructionMode
from monai_diffae.inferers.exact_encoding import encode_exactly


class Reconstructor(Inferer):
    """Encodes and decodes images.

    Args:
        inferer: encodes, inverts and decodes.
        mode: ``x_T`` decodes with each image's own inverted x_T (near-exact); ``z_sem`` with Gaussian noise.
        seed: random seed of that noise, which is a function of the seed, the case's id and the number of the draw.
        draws: in mode ``z_sem``, the reconstruction is the mean over this many decodings from different noise.
        max_evaluations: in mode ``x_T``, most network evaluations for refining the inversion of one image; see
            :meth:`DiffusionAutoencoderInferer.round_trip`.

    Raises:
        ConfigError: the mode does not exist, or ``draws`` is not a whole number, at least 1.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> from monai_diffae.networks import build_autoencoder
        >>> network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
        >>> reconstruct = Reconstructor(DiffusionAutoencoderInferer(DiffusionSchedule(), steps=2), mode="z_sem")
        >>> reconstruct(torch.zeros(2, 1, 16, 16), network.eval(), ids=["case-1", "case-2"]).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        inferer: DiffusionAutoencoderInferer,
        mode: ReconstructionMode = "x_T",
        seed: int = 0,
        draws: int = 1,
        max_evaluations: int | None = None,
    ) -> None:
        if mode not in ("x_T", "z_sem"):
            raise ConfigError(f"mode: '{mode}' is not one of x_T, z_sem")
        if type(draws) is not int or draws < 1:
            raise ConfigError(f"draws is {quoted(draws)}; it must be a whole number, at least 1")
        if mode == "x_T" and draws != 1:
            raise ConfigError(f"draws is {draws}, but mode x_T has no noise; use 1, or mode z_sem")
        self.inferer, self.mode, self.seed = inferer, mode, seed
        self.draws, self.max_evaluations = draws, max_evaluations

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
        self,
        images: Tensor,
        network: nn.Module,
        z_sem: Tensor,
        ids: Sequence[str] | None = None,
        callback: StepCallback | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode z_sem (B, D) of images; the other arguments are those of a call.

        In mode ``x_T``, the callback is that of :meth:`DiffusionAutoencoderInferer.round_trip`.

        Returns:
            The reconstructions (B, C, *S), and the x_T that they were decoded with; of several draws, the first.
        """
        if self.mode == "x_T":
            x_T, decoded = self.inferer.round_trip(images, network, z_sem, callback, self.max_evaluations)
            return decoded, x_T
        x_T = self.noise(images, ids)
        return self.decode_draws(network, z_sem, x_T).mean(dim=1), x_T[:, 0]

    def noise(self, images: Tensor, ids: Sequence[str] | None = None) -> Tensor:
        """The x_T (B, draws, C, *S) of images (B, C', *S) in mode ``z_sem``; the first draw is that of a single one."""
        indices = [0] if ids is None else [seed_of(name) for name in ids]
        shape = self.inferer.x_T_shape(images.shape[1:])
        rows = [[index, *(seed_of(index, "draw", draw) for draw in range(1, self.draws))] for index in indices]
        noise = torch.stack([image_noise(shape, self.seed, row) for row in rows])
        return noise.to(images).expand(len(images), self.draws, *shape)

    @torch.no_grad()
    def decode_draws(self, network: nn.Module, z_sem: Tensor, x_T: Tensor) -> Tensor:
        """Decode each z_sem (B, D) with each of its x_T (B, draws, C, *S): images (B, draws, C', *S)."""
        draws = x_T.shape[1]
        decoded = self.inferer.decode(z_sem.repeat_interleave(draws, dim=0), x_T.flatten(0, 1), network)
        return decoded.unflatten(0, (len(z_sem), draws))
