"""MONAI's UNets as the decoder: z_sem is the context of their cross-attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from monai_diffae.errors import ConfigError


class CrossAttentionUNet(nn.Module):
    """MONAI's ``DiffusionModelUNet`` or ``DiffusionModelUNetMaisi``, which attends to z_sem.

    z_sem (B, Z) is cut into tokens (B, Z / c, c), where c is the UNet's ``cross_attention_dim``. With one token
    (c = Z), attention adds a projection of z_sem to the features of each position. Several tokens are a *set*: MONAI's
    UNet gives them no position, so tokens that change places give the same image.

    :class:`~monai_diffae.networks.DiffusionAutoencoder` makes this from MONAI's networks. It has no gradient
    checkpointing.

    Args:
        network: one of the two networks, with ``with_conditioning=True``, and with images as its only other input.
        z_channels: size of z_sem, a multiple of c; None: c, one token.

    Raises:
        ConfigError: the network takes other inputs, or z_sem cannot be cut into tokens.

    Example:
        >>> import torch
        >>> from monai.networks.nets import DiffusionModelUNet
        >>> network = DiffusionModelUNet(2, 1, 1, channels=(8, 16), attention_levels=(False, True), num_res_blocks=1,
        ...     norm_num_groups=8, num_head_channels=8, with_conditioning=True, cross_attention_dim=4)
        >>> unet = CrossAttentionUNet(network, z_channels=12)
        >>> unet.num_tokens, unet(torch.zeros(2, 1, 8, 8), torch.tensor([0, 9]), torch.zeros(2, 12)).shape
        (3, torch.Size([2, 1, 8, 8]))
    """

    def __init__(self, network: Any, z_channels: int | None = None) -> None:
        super().__init__()
        name = type(network).__name__
        keys = (module for name, module in network.named_modules() if name.endswith("attn2.to_k"))
        token_size = next((key.in_features for key in keys if isinstance(key, nn.Linear)), None)
        if token_size is None:
            raise ConfigError(f"unet: {name} has no cross-attention; set with_conditioning and cross_attention_dim")
        inputs = [key for key in vars(network) if key.startswith("include_") and getattr(network, key)]
        if inputs or network.num_class_embeds is not None:
            raise ConfigError(f"unet: {name} takes {(inputs or ['num_class_embeds'])[0]}, which is not known; omit it")
        if network.in_channels != network.out_channels:
            raise ConfigError(f"unet: {name} has other out_channels than in_channels; give both the same number")
        self.z_channels = token_size if z_channels is None else z_channels
        self.num_tokens: int = self.z_channels // token_size
        if self.z_channels % token_size:
            raise ConfigError(
                f"z_channels is {self.z_channels}; it must be a multiple of cross_attention_dim, which is {token_size}"
            )
        self.network: Any = network
        self.in_channels: int = network.in_channels
        self.spatial_dims: int = network.conv_in.conv.weight.ndim - 2
        self.size_divisors = (2 ** (len(network.block_out_channels) - 1),) * self.spatial_dims

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Predict from noisy images.

        Args:
            x: noisy images x_t (B, C, *S); every size a multiple of its ``size_divisors``.
            timesteps: (B,), integers or floats.
            context: z_sem (B, z_channels).

        Returns:
            (B, C, *S), in the dtype of ``x`` (also under autocast).
        """
        tokens = context.reshape(context.shape[0], self.num_tokens, -1)
        output: Tensor = self.network(x, timesteps, context=tokens)
        return output.to(x.dtype)


def is_monai_unet(network: nn.Module) -> bool:
    """Whether a network is one of MONAI's two UNets for diffusion, without an import of MONAI's applications."""
    return hasattr(network, "block_out_channels") and hasattr(network, "with_conditioning")
