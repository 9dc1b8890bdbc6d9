"""The semantic encoder: an image -> z_sem, a vector that describes its content."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_diffae.networks.arguments import keeps_config, level_strides, level_widths, per_axis, strides_product
from monai_diffae.networks.blocks import CellMeans, ChannelGroupNorm, PlainBlock, PositionAttention, check_images, conv3


class SemanticEncoder(nn.Module):
    """Images (B, C, *S) -> z_sem (B, z_channels): the down half of a UNet without a time step, then a mean over space.

    The encoder of Diff-AE (Preechakul et al., CVPR 2022, arXiv 2111.15640), layer by layer as in its official code. In
    addition, ``z_grid`` averages over several cells instead of the whole image, so that z_sem also describes where
    something is. This helps because scans of one kind are similarly positioned.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        z_channels: size of z_sem.
        base_channels: width that ``channel_mult`` multiplies.
        channel_mult: one multiplier per level, full resolution first.
        num_res_blocks: blocks per level.
        attention_levels: levels with attention, 0 being full resolution; the middle always has it.
        num_heads: attention heads.
        strides: one entry per level below the first: the factor by which it is smaller than the level above, a number
            or one per axis; None: 2.
        z_grid: cells per axis (one number, or one per axis) over which the last features are averaged; 1: over the
            whole image, as in the paper. Cells overlap if their number does not divide the size of the features.
        size_divisors: what each spatial size must be a multiple of (one number, or one per axis); None: so that every
            level can halve its size. With smaller numbers, a level of odd size ignores its last row and column, as in
            the official code.

    Example:
        >>> encoder = SemanticEncoder(3, 1, z_channels=16, base_channels=8, channel_mult=(1, 2), num_res_blocks=1)
        >>> encoder(torch.zeros(2, 1, 8, 8, 6)).shape
        torch.Size([2, 16])
    """

    if TYPE_CHECKING:  # TorchScript would try to compile an annotation that it sees
        config: dict[str, Any]

    @keeps_config
    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        z_channels: int = 512,
        base_channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 4, 8, 8),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (),
        num_heads: int = 1,
        strides: Sequence[int | Sequence[int]] | None = None,
        z_grid: int | Sequence[int] = 1,
        size_divisors: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        widths = level_widths(base_channels, channel_mult, attention_levels)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.z_channels = z_channels
        each_stride = level_strides(spatial_dims, len(widths), strides)
        if size_divisors is None:
            size_divisors = strides_product(spatial_dims, each_stride)
        self.size_divisors = per_axis(spatial_dims, size_divisors, "size_divisors")
        cells = per_axis(spatial_dims, z_grid, "z_grid")
        self.use_checkpoint = False  # DiffusionAutoencoder sets it

        self.stem = conv3(spatial_dims, in_channels, widths[0])
        self.stages = nn.ModuleList()
        width = widths[0]
        for level, level_width in enumerate(widths):
            if level > 0:
                self.stages.append(
                    nn.Sequential(PlainBlock(spatial_dims, width, width, "down", each_stride[level - 1]))
                )
            for _ in range(num_res_blocks):
                stage = nn.Sequential(PlainBlock(spatial_dims, width, level_width))
                if level in attention_levels:
                    stage.append(PositionAttention(level_width, num_heads))
                self.stages.append(stage)
                width = level_width
        self.middle_stage = nn.Sequential(
            PlainBlock(spatial_dims, width, width),
            PositionAttention(width, num_heads),
            PlainBlock(spatial_dims, width, width),
        )
        self.head = nn.Sequential(
            ChannelGroupNorm(width),
            nn.SiLU(),
            CellMeans(cells),
            nn.Flatten(),
            nn.Linear(width * math.prod(cells), z_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Encode images.

        Args:
            x: images (B, C, *S), normally in [-1, 1]; every size a multiple of its ``size_divisors``.

        Returns:
            z_sem (B, z_channels), in the dtype of ``x`` (also under autocast).
        """
        return self.head(self._trunk(x)).to(x.dtype)

    @torch.jit.unused
    def features(self, x: Tensor) -> Tensor:
        """The features (B, F) before the last layer, which :meth:`project` applies."""
        return self.head[:-1](self._trunk(x))

    @torch.jit.unused
    def project(self, features: Tensor) -> Tensor:
        """z_sem (B, z_channels) from :meth:`features`."""
        return self.head[-1](features)

    def _trunk(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            check_images(x, self.spatial_dims, self.in_channels, self.size_divisors, "the image to encode")
            if self.use_checkpoint and torch.is_grad_enabled():
                return self._trunk_recomputing(x)
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.middle_stage(x)

    @torch.jit.unused
    def _trunk_recomputing(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for stage in self.stages:
            h = checkpoint(stage, h, use_reentrant=False)
        return checkpoint(self.middle_stage, h, use_reentrant=False)
