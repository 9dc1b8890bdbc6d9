"""An encoder whose z_sem is read from the features of every resolution, for probes."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.layers.factories import Pool
from torch import nn
from torch.utils.checkpoint import checkpoint

from monai_diffae.networks.blocks import ChannelGroupNorm, check_images
from monai_diffae.networks.semantic_encoder import SemanticEncoder


class MultiscaleEncoder(SemanticEncoder):
    """A :class:`SemanticEncoder` whose z_sem is also a linear function of the means of every stage's features.

    The encoder of Diff-AE reads z_sem from its smallest features only. Means of finer features describe texture, such
    as that of the lungs, which small features have lost. It is not the paper's encoder, so weights of the official code
    do not fit.

    Args:
        *args: arguments of :class:`SemanticEncoder`.
        **kwargs: the same.

    Raises:
        ConfigError: as for :class:`SemanticEncoder`.

    Example:
        >>> encoder = MultiscaleEncoder(2, 1, z_channels=16, base_channels=8, channel_mult=(1, 2), num_res_blocks=1)
        >>> encoder(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 16])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.readers = nn.ModuleList(
            nn.Sequential(
                ChannelGroupNorm(width),
                nn.SiLU(),
                Pool[Pool.ADAPTIVEAVG, self.spatial_dims](1),
                nn.Flatten(),
                nn.Linear(width, self.z_channels, bias=False),
            )
            for width in self.stage_widths
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            x: images (B, C, *S), normally in [-1, 1]; every size a multiple of its ``size_divisors``.

        Returns:
            z_sem (B, z_channels), in the dtype of ``x`` (also under autocast).

        Raises:
            ConfigError: wrong number of channels, or a size that the levels cannot divide.
        """
        dtype = x.dtype
        if not torch.jit.is_scripting():
            check_images(x, self.spatial_dims, self.in_channels, self.size_divisors, "the image to encode")
            if self.use_checkpoint and torch.is_grad_enabled():
                return self._forward_recomputing(x)
        x = self.stem(x)
        means: list[torch.Tensor] = []
        for stage, reader in zip(self.stages, self.readers):  # noqa: B905 - TorchScript has no strict
            x = stage(x)
            means.append(reader(x))
        return (self.head(self.middle_stage(x)) + torch.stack(means).sum(dim=0)).to(dtype)

    @torch.jit.unused
    def _forward_recomputing(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        means = []
        for stage, reader in zip(self.stages, self.readers, strict=True):
            h = checkpoint(stage, h, use_reentrant=False)
            means.append(reader(h))
        h = checkpoint(self.middle_stage, h, use_reentrant=False)
        return (self.head(h) + torch.stack(means).sum(dim=0)).to(x.dtype)
