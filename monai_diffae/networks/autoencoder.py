"""The diffusion autoencoder's networks as one module: encoder and conditional denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monai_diffae.errors import ConfigError
from monai_diffae.networks.blocks import check_images
from monai_diffae.networks.denoising_unet import DenoisingUNet
from monai_diffae.networks.semantic_encoder import SemanticEncoder


class DiffusionAutoencoder(nn.Module):
    """``z_sem = Enc(x0)`` and ``eps_theta(x_t, t, z_sem)`` in one module, so that DDP sees one forward.

    Diff-AE, Preechakul et al., CVPR 2022 (arXiv 2111.15640). Sampling and inversion live in
    :mod:`monai_diffae.diffusion`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the noisy images.
        out_channels: channels of the prediction; None: as many as ``in_channels``.
        base_channels: width that ``channel_mult`` multiplies.
        channel_mult: the UNet's multiplier for every level, full resolution first.
        encoder_base_channels: the encoder's width; None: ``base_channels``.
        encoder_channel_mult: the encoder's multipliers; None: ``channel_mult`` with its last entry once more.
        num_res_blocks: blocks a level going down; the UNet has one more going up.
        attention_levels: the UNet's levels with attention, 0 being full resolution; the middle always has it.
        encoder_attention_levels: the same for the encoder; None: as ``attention_levels``.
        num_heads: attention heads.
        z_channels: size of z_sem.
        time_embed_channels: size of the time embedding.
        dropout: probability of dropping an element inside the UNet's blocks.
        use_checkpoint: recompute activations in the backward pass instead of keeping them.
        encoder_in_channels: channels of the images to encode; None: ``in_channels``.
        encoder_num_res_blocks: the encoder's blocks a level; None: ``num_res_blocks``.
        encoder: any network (B, encoder_in_channels, *S) -> (B, z_channels) in place of :class:`SemanticEncoder`,
            for example MONAI's ``resnet18`` by a ``_target_`` in a bundle's config. If it returns several things,
            the first counts.
        strides: by how much each level but the first is smaller than the one before, a number or one an axis, for
            the deeper of the two networks (the encoder, by default); None: 2. See
            :func:`~monai_diffae.networks.strides.anisotropic_strides`.
        z_grid: cells along each axis that the encoder reads z_sem from and the UNet draws it into (a foreign encoder
            reads as it does), a number or one an axis; 1: none, as in the paper.

    Attributes:
        config: the arguments above as JSON can hold them: ``DiffusionAutoencoder(**config)`` builds this network
            again. A foreign encoder is there by its class's name, and must then be given anew.
        size_divisors: what each spatial size must be a multiple of.

    Raises:
        ConfigError: settings that give no network; in ``encode`` and ``forward``, images of a wrong shape.

    Example:
        >>> net = DiffusionAutoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=16, time_embed_channels=8)
        >>> x0, x_t, t = torch.zeros(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([10, 500])
        >>> net(x_t, t, context=x0).shape
        torch.Size([2, 1, 8, 8])
        >>> net(x_t, t, context=net.encode(x0)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        out_channels: int | None = None,
        base_channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        encoder_base_channels: int | None = None,
        encoder_channel_mult: Sequence[int] | None = None,
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (),
        encoder_attention_levels: Sequence[int] | None = None,
        num_heads: int = 1,
        z_channels: int = 512,
        time_embed_channels: int = 512,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
        encoder_in_channels: int | None = None,
        encoder_num_res_blocks: int | None = None,
        encoder: nn.Module | None = None,
        strides: Sequence[int | Sequence[int]] | None = None,
        z_grid: int | Sequence[int] = 1,
    ) -> None:
        super().__init__()
        if isinstance(encoder, str):
            raise ConfigError(f"this model has an encoder of its own ({encoder}): build it and give it as encoder=")
        if encoder_channel_mult is None:
            encoder_channel_mult = [*channel_mult, *channel_mult[-1:]]
        if encoder_attention_levels is None:
            encoder_attention_levels = attention_levels
        if encoder_num_res_blocks is None:
            encoder_num_res_blocks = num_res_blocks
        self.spatial_dims = spatial_dims
        self.z_channels = z_channels
        self.encoder_in_channels = in_channels if encoder_in_channels is None else encoder_in_channels
        config: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "in_channels": in_channels,
            "out_channels": in_channels if out_channels is None else out_channels,
            "base_channels": base_channels,
            "channel_mult": list(channel_mult),
            "encoder_base_channels": base_channels if encoder_base_channels is None else encoder_base_channels,
            "encoder_channel_mult": list(encoder_channel_mult),
            "num_res_blocks": num_res_blocks,
            "attention_levels": list(attention_levels),
            "encoder_attention_levels": list(encoder_attention_levels),
            "num_heads": num_heads,
            "z_channels": z_channels,
            "time_embed_channels": time_embed_channels,
            "dropout": dropout,
            "use_checkpoint": use_checkpoint,
            "encoder_in_channels": self.encoder_in_channels,
            "encoder_num_res_blocks": encoder_num_res_blocks,
            "encoder": None if encoder is None else f"{type(encoder).__module__}.{type(encoder).__qualname__}",
            "strides": None if strides is None else [s if isinstance(s, int) else list(s) for s in strides],
            "z_grid": z_grid if isinstance(z_grid, int) else list(z_grid),
        }
        self.config = config  # not annotated here: TorchScript would try to compile it
        self.unet = DenoisingUNet(
            spatial_dims,
            in_channels,
            out_channels,
            base_channels,
            channel_mult,
            num_res_blocks,
            attention_levels,
            num_heads,
            z_channels,
            time_embed_channels,
            dropout,
            use_checkpoint,
            strides,
            z_grid,
        )
        if encoder is None:
            encoder = SemanticEncoder(
                spatial_dims,
                self.encoder_in_channels,
                z_channels,
                config["encoder_base_channels"],
                encoder_channel_mult,
                encoder_num_res_blocks,
                encoder_attention_levels,
                num_heads,
                use_checkpoint,
                strides,
                z_grid,
            )
        self.encoder = encoder
        own = encoder.size_divisors if isinstance(encoder, SemanticEncoder) else (1,) * spatial_dims
        self.size_divisors = tuple(max(pair) for pair in zip(self.unet.size_divisors, own, strict=True))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Clean images (B, encoder_in_channels, *S), normally in [-1, 1] -> z_sem (B, z_channels).

        Raises:
            ConfigError: wrong number of channels, a size that the levels cannot divide, or an encoder whose output
                is not (B, z_channels).
        """
        if not torch.jit.is_scripting():
            check_images(x, self.spatial_dims, self.encoder_in_channels, self.size_divisors, "the image to encode")
        z_sem = self.encoder(x)
        if isinstance(z_sem, (tuple, list)):  # MONAI's ViT also returns its hidden states
            z_sem = z_sem[0]
        if not torch.jit.is_scripting():
            self._check_z_sem(z_sem)
        return z_sem

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor | None = None, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict from noisy images; ``forward(x)`` alone is the prediction for x at time step 0 with Enc(x).

        Args:
            x: noisy images x_t (B, C, *S); every size a multiple of its ``size_divisors``.
            timesteps: (B,), integers or floats; None: 0 everywhere.
            context: z_sem (B, z_channels), or the clean images (B, encoder_in_channels, *S), which get encoded
                here; None: x itself gets encoded.

        Returns:
            (B, out_channels, *S): what the UNet was trained to predict.

        Raises:
            ConfigError: images or z_sem of a wrong shape.
        """
        if not torch.jit.is_scripting():
            check_images(x, self.spatial_dims, self.unet.in_channels, self.size_divisors, "the noisy image")
        if context is None:
            context = x
        is_image = context.ndim == self.spatial_dims + 2
        z_sem = self.encode(context) if is_image else context
        if timesteps is None:
            timesteps = torch.zeros(x.shape[0], device=x.device)
        return self.unet(x, timesteps, z_sem)

    @torch.jit.unused
    def _check_z_sem(self, z_sem: torch.Tensor) -> None:
        if z_sem.ndim != 2 or z_sem.shape[1] != self.z_channels:
            raise ConfigError(
                f"the encoder {type(self.encoder).__name__} gives {tuple(z_sem.shape)}: "
                f"z_channels={self.z_channels} needs (B, {self.z_channels})"
            )
