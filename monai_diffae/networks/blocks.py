"""Building blocks of the encoder and the UNet, the same in 2D and 3D.

Every operation keeps the memory format of its input, so that ``channels_last`` (2D) and ``channels_last_3d`` need no
copies between two convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from monai_diffae.errors import ConfigError, counted
from monai_diffae.networks.group_norm import ChannelsLastGroupNorm, has_faster_backward


def group_count(channels: int) -> int:
    """The number of GroupNorm groups for a width: its largest divisor up to 32, as in the official code's widths."""
    return next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)


def zero_initialised(module: nn.Module) -> nn.Module:
    """Set a layer's parameters to 0 and return it, so that a residual branch that it ends contributes nothing yet."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class PaddedConv3d(nn.Conv3d):
    """A 3D convolution that pads beforehand where an axis is smaller than the kernel.

    Without it, oneDNN 3.12 gives wrong bf16 gradients, up to 1e36 times too large, or crashes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C_in, *S) -> (B, C_out, *S')."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript would compile a second condition
            if not torch.compiler.is_exporting():
                return self._padded_if_small(input)
        return self._conv_forward(input, self.weight, self.bias)

    @torch.jit.unused
    def _padded_if_small(self, input: Tensor) -> Tensor:
        if all(size >= kernel for size, kernel in zip(input.shape[2:], self.kernel_size, strict=False)):
            return self._conv_forward(input, self.weight, self.bias)
        padding = cast("tuple[int, int, int]", self.padding)
        padded = F.pad(input, [n for n in reversed(padding) for _ in range(2)])
        return F.conv3d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def pad_beforehand(network: nn.Module) -> None:
    """Make the 3D convolutions of another package's network :class:`PaddedConv3d`; weights and outputs stay."""
    for module in network.modules():
        if type(module) is not nn.Conv3d or module.padding_mode != "zeros" or isinstance(module.padding, str):
            continue
        if any(module.padding):
            module.__class__ = PaddedConv3d


def conv3(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """A convolution of size 3 that keeps the spatial size."""
    kind = PaddedConv3d if spatial_dims == 3 else nn.Conv2d
    return kind(in_channels, out_channels, kernel_size=3, padding=1)


def check_images(x: Tensor, spatial_dims: int, channels: int | None, divisors: Sequence[int], name: str) -> None:
    """Refuse images (B, C, *S) that a network cannot take; the error names the nearest sizes that it can."""
    if x.ndim != spatial_dims + 2:
        shape = "(B, C, H, W)" if spatial_dims == 2 else "(B, C, H, W, D)"
        raise ConfigError(f"{name} has the shape {tuple(x.shape)}: a {spatial_dims}D network takes {shape}")
    if channels is not None and x.shape[1] != channels:
        raise ConfigError(
            f"{name} has {counted(x.shape[1], 'channel')}: the network was built for {channels}; "
            "use images like those of its training"
        )
    size = tuple(x.shape[2:])
    if any(s % d or s == 0 for s, d in zip(size, divisors, strict=True)):
        nearest = [sorted({max(s // d, 1) * d, max(-(-s // d), 1) * d}) for s, d in zip(size, divisors, strict=True)]
        usable = " x ".join(" or ".join(map(str, sizes)) for sizes in nearest)
        raise ConfigError(
            f"{name} has the size {' x '.join(map(str, size))}: the network's levels need multiples of "
            f"{shown_divisors(divisors)}; crop, pad or resize to {usable}"
        )


def check_context(context: Tensor, batch: int, z_channels: int) -> None:
    """Refuse a context that is not z_sem (B, z_channels) of a batch of B images."""
    if context.shape != (batch, z_channels):
        raise ConfigError(
            f"context has the shape {tuple(context.shape)}: the UNet takes z_sem of shape ({batch}, {z_channels})"
        )


def shown_divisors(divisors: Sequence[int]) -> str:
    """Size divisors as text for a message: one number if all axes have the same."""
    return str(divisors[0]) if len(set(divisors)) == 1 else " x ".join(map(str, divisors))


class ChannelGroupNorm(nn.GroupNorm):
    """GroupNorm that derives its number of groups from the width and computes in float32 for any input dtype.

    Attributes:
        uses_faster_backward: whether training on a CPU may use ``networks/group_norm.py``; outputs are the same.
    """

    uses_faster_backward: bool = True

    def __init__(self, channels: int) -> None:
        super().__init__(group_count(channels), channels)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, *S); the output has the dtype of the input. Float32 inputs are not converted."""
        weight, bias = self.weight.float(), self.bias.float()
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript would compile a second condition
            if self.uses_faster_backward and has_faster_backward(input):
                return ChannelsLastGroupNorm.apply(input, weight, bias, self.num_groups, self.eps)
        return F.group_norm(input.float(), self.num_groups, weight, bias, self.eps).to(input.dtype)


class HalvingPool(nn.Module):
    """Average pooling by 2 along some axes; in 3D by slices, as ``avg_pool3d`` has no channels_last or bf16 on CPUs."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.pool = Pool[Pool.AVG, 2](kernel_size=tuple(stride)) if len(stride) == 2 else None
        self.halved = [axis for axis, step in enumerate(stride, 2) if step == 2]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S / stride)."""
        if self.pool is not None:
            return self.pool(x)
        if 2 in self.halved:
            x = x[:, :, 0::2] + x[:, :, 1::2]
        if 3 in self.halved:
            x = x[:, :, :, 0::2] + x[:, :, :, 1::2]
        if 4 in self.halved:
            x = x[..., 0::2] + x[..., 1::2]
        return x * 0.5 ** len(self.halved)


def resampling(resample: str, stride: Sequence[int]) -> nn.Module:
    """The layer that resamples ``"down"`` (mean of neighbors), ``"up"`` (nearest) or not at all (``"none"``)."""
    if resample == "none" or set(stride) == {1}:
        return nn.Identity()
    if resample == "down":
        return HalvingPool(stride)
    return nn.Upsample(scale_factor=tuple(float(step) for step in stride), mode="nearest")


def skip_connection(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """The identity, or a convolution of size 1 if the widths differ."""
    if in_channels == out_channels:
        return nn.Identity()
    return Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=1)


class PlainBlock(nn.Module):
    """The encoder's residual block ``skip(x) + conv3(SiLU(GN(x)))``, as in the official code, after ``resample``."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        resample: str = "none",
        stride: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = ChannelGroupNorm(in_channels)
        self.resample = resampling(resample, stride or (2,) * spatial_dims)
        self.conv1 = conv3(spatial_dims, in_channels, out_channels)
        self.skip = skip_connection(spatial_dims, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, *S) -> (B, C_out, *S or *S / stride)."""
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        return self.skip(self.resample(x)) + h


class TwoConditionBlock(nn.Module):
    """The UNet's residual block with adaptive group normalisation by the time step and by z_sem.

    ``h = conv3(resample(SiLU(GN(x))))``, then ``h = conv3(Dropout(SiLU(z_s * (t_s * GN(h) + t_b))))`` and
    ``skip(resample(x)) + h``: Diff-AE (arXiv 2111.15640) equation 7, with ``t_s = 1 + ...`` and ``z_s = 1 + ...`` as in
    the official code. The second convolution is initialised with 0, so that an untrained block is its skip connection.

    Example:
        >>> block = TwoConditionBlock(2, 32, 64, time_channels=16, z_channels=8, resample="up")
        >>> block(torch.zeros(1, 32, 4, 4), torch.zeros(1, 16), block.z_scale(torch.zeros(1, 8))).shape
        torch.Size([1, 64, 8, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        z_channels: int,
        dropout: float = 0.0,
        resample: str = "none",
        stride: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = ChannelGroupNorm(in_channels)
        self.resample = resampling(resample, stride or (2,) * spatial_dims)
        self.conv1 = conv3(spatial_dims, in_channels, out_channels)
        self.time_projection = nn.Linear(time_channels, 2 * out_channels)
        self.z_projection = nn.Linear(z_channels, out_channels)
        self.norm2 = ChannelGroupNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_initialised(conv3(spatial_dims, out_channels, out_channels))
        self.skip = skip_connection(spatial_dims, in_channels, out_channels)

    def z_scale(self, z_sem: Tensor) -> Tensor:
        """z_s of equation 7 (B, C_out), of z_sem (B, z_channels); the same for all time steps."""
        return 1 + self.z_projection(F.silu(z_sem))

    def forward(self, x: Tensor, time_embedding: Tensor, z_scale: Tensor) -> Tensor:
        """(B, C_in, *S), (B, time_channels), (B, C_out) of :meth:`z_scale` -> (B, C_out, resampled *S)."""
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        time_scale, time_shift = self.time_projection(F.silu(time_embedding)).chunk(2, dim=1)
        # Time first, then z_sem, as one multiply-add over the image: z (t_s h + t_b) = (z t_s) h + z t_b.
        per_channel = z_scale.shape + (1,) * (x.ndim - 2)
        scale = (z_scale * (1 + time_scale)).view(per_channel)
        shift = (z_scale * time_shift).view(per_channel)
        h = torch.addcmul(shift, self.norm2(h), scale)
        h = self.conv2(self.dropout(F.silu(h)))
        return self.skip(self.resample(x)) + h


class PositionAttention(nn.Module):
    """Adds self-attention between all positions to a feature map; untrained, it is the identity."""

    def __init__(self, channels: int, num_heads: int = 1) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ConfigError(
                f"num_heads={num_heads} does not divide a width of {channels} at a level with attention; use another "
                "num_heads or base_channels"
            )
        self.num_heads = num_heads
        self.norm = ChannelGroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero_initialised(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, L, C); in channels_last a view, not a copy
        batch, length, channels = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, self.num_heads, 3, channels // self.num_heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # 3 x (B, heads, L, C / heads)
        # The fused kernel is used for every size. Time of a plain softmax relative to it (training, one CPU thread,
        # float32, widths 256-64): 16 tokens 1.2-1.7, 64 tokens 1.0-1.1, 256 tokens 0.9-1.7, 1024 tokens 1.0-1.7,
        # 4096 tokens 1.1-1.9. It also stores no L x L matrices. In bfloat16 it is 1.4-3.5 times faster for all sizes.
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, channels)
        return x + self.out(h).transpose(1, 2).reshape(x.shape)


class CellMeans(nn.Module):
    """Averages a feature map over cells, which overlap if their number does not divide the size of the features."""

    def __init__(self, cells: Sequence[int]) -> None:
        super().__init__()
        self.cells = list(cells)
        self.pool = Pool[Pool.ADAPTIVEAVG, len(cells)](tuple(cells))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *cells)."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript would compile a second condition
            if _needs_products(x):
                each = [overlaps(n, size, x) for n, size in zip(self.cells, x.shape[2:], strict=True)]
                return _along_axes(x, each)
        return self.pool(x)


class ZMap(nn.Module):
    """Adds a coarse map that is linear in z_sem to a feature map, cell by cell; untrained, it is the identity."""

    def __init__(self, channels: int, z_channels: int, cells: Sequence[int]) -> None:
        super().__init__()
        self.shape = [channels, *cells]
        self.linear = zero_initialised(nn.Linear(z_channels, math.prod(self.shape)))

    def values(self, z_sem: Tensor) -> Tensor:
        """The map (B, C, *cells) of z_sem (B, z_channels); the same for all time steps."""
        return self.linear(z_sem).unflatten(1, self.shape)

    def forward(self, x: Tensor, cells: Tensor) -> Tensor:
        """(B, C, *S), (B, C, *cells) of :meth:`values` -> (B, C, *S)."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript would compile a second condition
            if _needs_products(x):
                each = [overlaps(n, size, x).mT for n, size in zip(self.shape[1:], x.shape[2:], strict=True)]
                return x + _along_axes(cells, each)
        return x + F.interpolate(cells, size=x.shape[2:], mode="area").to(x.dtype)


def overlaps(num_cells: int, num_features: int, like: Tensor) -> Tensor:
    """Which of the features along an axis each cell covers, as PyTorch's adaptive pooling divides them: 1 or 0, (N, F).

    Adaptive pooling cannot be exported for a free size, and its gradient on a GPU adds numbers in any order. Products
    with these matrices can be exported, are the same to the bit each time, and give the same means.
    """
    cell = torch.arange(num_cells, device=like.device)[:, None]
    feature = torch.arange(num_features, device=like.device)[None]
    starts = cell * num_features < (feature + 1) * num_cells
    goes_on = feature * num_cells < (cell + 1) * num_features
    return (starts & goes_on).to(like.dtype)


def _needs_products(x: Tensor) -> bool:
    """Whether products with :func:`overlaps` replace PyTorch's adaptive pooling."""
    return torch.compiler.is_exporting() or x.is_cuda


def _along_axes(x: Tensor, members: Sequence[Tensor]) -> Tensor:
    """Means along each spatial axis of (B, C, *S), over the members that a matrix (new size, size) marks with 1."""
    for axis, matrix in enumerate(members, 2):
        weights = matrix / matrix.sum(dim=1, keepdim=True)
        x = (x.transpose(axis, -1) @ weights.mT).transpose(axis, -1)
    return x
