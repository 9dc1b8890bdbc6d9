"""The conditional denoiser: predicts eps, x0 or v from a noisy image, its time step and z_sem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_diffae.networks import blocks
from monai_diffae.networks.arguments import keeps_config, level_strides, level_widths, per_axis, strides_product


class UNetStage(nn.Module):
    """A residual block, optional attention and an optional last block (in the middle, and where a level ends)."""

    def __init__(
        self,
        block: blocks.TwoConditionBlock,
        attention: blocks.PositionAttention | None = None,
        last_block: blocks.TwoConditionBlock | None = None,
    ) -> None:
        super().__init__()
        self.block = block
        self.attention = attention
        self.last_block = last_block
        self.use_checkpoint = False  # DiffusionAutoencoder sets it

    def z_scales(self, z_sem: Tensor) -> list[Tensor]:
        """The :meth:`~TwoConditionBlock.z_scale` of each block, of z_sem (B, z_channels)."""
        scales = [self.block.z_scale(z_sem)]
        if self.last_block is not None:
            scales.append(self.last_block.z_scale(z_sem))
        return scales

    def forward(self, x: Tensor, time_embedding: Tensor, z_scales: list[Tensor]) -> Tensor:
        """(B, C_in, *S), (B, time_embed_channels), what :meth:`z_scales` gives -> (B, C_out, resampled *S)."""
        if not torch.jit.is_scripting() and self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._apply_blocks, x, time_embedding, z_scales, use_reentrant=False)
        return self._apply_blocks(x, time_embedding, z_scales)

    def _apply_blocks(self, x: Tensor, time_embedding: Tensor, z_scales: list[Tensor]) -> Tensor:
        x = self.block(x, time_embedding, z_scales[0])
        if self.attention is not None:
            x = self.attention(x)
        if self.last_block is not None:
            x = self.last_block(x, time_embedding, z_scales[1])
        return x


class DenoisingUNet(nn.Module):
    """A UNet for ``eps_theta(x_t, t, z_sem)`` (or x0, or v) that is conditioned on z_sem in every block.

    The UNet of Diff-AE (Preechakul et al., CVPR 2022, arXiv 2111.15640), layer by layer as in its official code.
    There, z_sem scales whole channels; with a ``z_grid``, it also adds a coarse map. It can be called as
    ``unet(x=..., timesteps=..., context=...)``, as MONAI's inferers do. Untrained, it predicts 0 everywhere.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of x_t, and of the output.
        base_channels: width that ``channel_mult`` multiplies, and size of the sinusoidal time embedding.
        channel_mult: one multiplier per level, full resolution first.
        num_res_blocks: blocks per level going down; there is one more per level going up.
        attention_levels: levels with attention, 0 being full resolution; the middle always has it.
        num_heads: attention heads.
        z_channels: size of z_sem.
        time_embed_channels: size of the time embedding.
        dropout: probability of dropping an element inside the blocks.
        strides: one entry per level below the first: the factor by which it is smaller than the level above, a number
            or one per axis; None: 2. See :func:`~monai_diffae.networks.anisotropic_strides`.
        z_grid: cells per axis (one number, or one per axis) of a map that is computed from z_sem and added in the
            middle; 1: no map, as in the paper.

    Example:
        >>> unet = DenoisingUNet(2, base_channels=8, channel_mult=(1, 2), z_channels=16, time_embed_channels=24)
        >>> unet(x=torch.zeros(2, 1, 8, 8), timesteps=torch.tensor([0, 999]), context=torch.zeros(2, 16)).shape
        torch.Size([2, 1, 8, 8])
    """

    if TYPE_CHECKING:  # TorchScript would try to compile an annotation that it sees
        config: dict[str, Any]

    @keeps_config
    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        base_channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (),
        num_heads: int = 1,
        z_channels: int = 512,
        time_embed_channels: int = 512,
        dropout: float = 0.0,
        strides: Sequence[int | Sequence[int]] | None = None,
        z_grid: int | Sequence[int] = 1,
    ) -> None:
        super().__init__()
        widths = level_widths(base_channels, channel_mult, attention_levels)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.base_channels = base_channels
        self.z_channels = z_channels
        each_stride = level_strides(spatial_dims, len(widths), strides)
        self.size_divisors = strides_product(spatial_dims, each_stride)

        def block(
            c_in: int, c_out: int, resample: str = "none", stride: Sequence[int] | None = None
        ) -> blocks.TwoConditionBlock:
            return blocks.TwoConditionBlock(
                spatial_dims, c_in, c_out, time_embed_channels, z_channels, dropout, resample, stride
            )

        def attention(level: int) -> blocks.PositionAttention | None:
            return blocks.PositionAttention(widths[level], num_heads) if level in attention_levels else None

        self.time_embed = nn.Sequential(
            nn.Linear(base_channels, time_embed_channels),
            nn.SiLU(),
            nn.Linear(time_embed_channels, time_embed_channels),
        )
        self.stem = blocks.conv3(spatial_dims, in_channels, widths[0])
        width = widths[0]
        skip_widths = [width]
        self.down_stages = nn.ModuleList()
        for level, level_width in enumerate(widths):
            if level > 0:
                self.down_stages.append(UNetStage(block(width, width, "down", each_stride[level - 1])))
                skip_widths.append(width)
            for _ in range(num_res_blocks):
                self.down_stages.append(UNetStage(block(width, level_width), attention(level)))
                width = level_width
                skip_widths.append(width)

        cells = per_axis(spatial_dims, z_grid, "z_grid")
        self.z_map = blocks.ZMap(width, z_channels, cells) if max(cells) > 1 else None
        self.middle_stage = UNetStage(
            block(width, width), blocks.PositionAttention(width, num_heads), block(width, width)
        )

        self.up_stages = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                ends_level = level > 0 and i == num_res_blocks
                upsampling = block(level_width, level_width, "up", each_stride[level - 1]) if ends_level else None
                joined = block(width + skip_widths.pop(), level_width)
                self.up_stages.append(UNetStage(joined, attention(level), upsampling))
                width = level_width

        self.head = nn.Sequential(
            blocks.ChannelGroupNorm(width),
            nn.SiLU(),
            blocks.zero_initialised(blocks.conv3(spatial_dims, width, in_channels)),
        )

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Predict from noisy images.

        Args:
            x: noisy images x_t (B, C, *S); every size a multiple of its ``size_divisors``.
            timesteps: (B,), integers or floats on the scale of the training's time steps (0 to 1000).
            context: z_sem (B, z_channels), or (B, 1, z_channels) as MONAI's inferers pass it.

        Returns:
            (B, in_channels, *S), in the dtype of ``x`` (also under autocast).
        """
        if context.ndim == 3 and context.shape[1] == 1:
            context = context[:, 0]
        if not torch.jit.is_scripting():
            blocks.check_context(context, x.shape[0], self.z_channels)
        return self.denoise(x, timesteps, self.projections(context))

    def projections(self, z_sem: Tensor) -> list[list[Tensor]]:
        """All that the UNet computes from z_sem (B, z_channels) alone, for :meth:`denoise`.

        Returns:
            One list per stage in the order of :meth:`denoise`; before the middle's, one with the map of cells, which is
            empty if there is no map.
        """
        each: list[list[Tensor]] = []
        for stage in self.down_stages:
            each.append(stage.z_scales(z_sem))  # type: ignore[operator]
        each.append([] if self.z_map is None else [self.z_map.values(z_sem)])
        each.append(self.middle_stage.z_scales(z_sem))
        for stage in self.up_stages:
            each.append(stage.z_scales(z_sem))  # type: ignore[operator]
        return each

    def denoise(self, x: Tensor, timesteps: Tensor, projections: list[list[Tensor]]) -> Tensor:
        """:meth:`forward` with the :meth:`projections` of z_sem, which a decoding computes once for all its steps."""
        dtype = x.dtype
        if not torch.jit.is_scripting():
            blocks.check_images(x, self.spatial_dims, self.in_channels, self.size_divisors, "the noisy image")
        # MONAI's sinusoidal embedding is the official one: [cos, sin], with frequencies from 1 to 1 / 10000.
        t = self.time_embed(get_timestep_embedding(timesteps, self.base_channels).to(dtype))
        h = self.stem(x)
        skips = [h]
        for i, stage in enumerate(self.down_stages):
            h = stage(h, t, projections[i])
            skips.append(h)
        num_down = len(self.down_stages)
        if self.z_map is not None:
            h = self.z_map(h, projections[num_down][0])
        h = self.middle_stage(h, t, projections[num_down + 1])
        for i, stage in enumerate(self.up_stages):
            h = stage(torch.cat([h, skips.pop()], dim=1), t, projections[num_down + 2 + i])
        return self.head(h).to(dtype)
