"""GroupNorm of images in channels_last on a CPU, with a faster backward pass for groups of few channels.

The backward pass of PyTorch 2.13 takes the channels of a group one after the other: with groups of 1 to 4 channels, as
our networks have, it took a fifth of a training step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# PyTorch's forward pass for so many positions computes bfloat16 in float32, to the same bits as a converted input.
_FEWEST_POSITIONS = 1024
_LARGEST_PART = 2**18  # values: converted to float32, they stay in a processor's cache


def has_faster_backward(x: Tensor) -> bool:
    """Whether to replace ``F.group_norm`` by :class:`ChannelsLastGroupNorm` for images (B, C, *S)."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not (torch.is_grad_enabled() and x.requires_grad):
        return False
    is_channels_last = x.is_contiguous(memory_format=_channels_last(x)) and not x.is_contiguous()
    is_large = x.shape[2:].numel() >= _FEWEST_POSITIONS
    return x.is_cpu and x.dtype in (torch.float32, torch.bfloat16) and is_channels_last and is_large


class ChannelsLastGroupNorm(torch.autograd.Function):
    """``F.group_norm`` of images (B, C, *S) in channels_last, with the same output, computed in the weights' dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """(B, C, *S), (C,), (C,) -> (B, C, *S) in the dtype of ``x``, which is kept for the backward pass as it is."""
        batch, channels = x.shape[:2]
        size = x.shape[2:].numel()
        y, mean, rstd = torch.native_group_norm(x, weight, bias, batch, channels, size, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of input, weight and bias: two sums over the positions, then two multiply-adds."""
        x, weight, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives, which also need those of mean and variance
            var, mean = torch.var_mean(x.to(weight.dtype).reshape(*mean.shape, -1), 2, correction=0)
            rstd = (var + ctx.eps).rsqrt()
        dy = dy.contiguous(memory_format=_channels_last(x))
        gamma = weight.view(mean.shape[1], -1)
        count = x[0].numel() // len(gamma)
        dx, d_weight, d_bias = torch.empty_like(x), torch.zeros_like(gamma), torch.zeros_like(gamma)
        starts = range(0, len(x), max(1, _LARGEST_PART // x[0].numel()))
        for start in starts[:1] if isinstance(x, FakeTensor) else starts:  # without data, all parts are alike
            part = slice(start, start + starts.step)
            x_part, dy_part = (images[part].flatten(2).to(weight.dtype) for images in (x, dy))
            mu, r = mean[part, :, None], rstd[part, :, None]
            sum_dy = dy_part.sum(2).unflatten(1, gamma.shape)
            sum_dy_normed = ((dy_part * x_part).sum(2).unflatten(1, gamma.shape) - mu * sum_dy) * r
            d_weight = d_weight + sum_dy_normed.sum(0)
            d_bias = d_bias + sum_dy.sum(0)
            per_x = (gamma * sum_dy_normed).sum(2, keepdim=True) * r.square() / -count
            offset = (gamma * sum_dy).sum(2, keepdim=True) * r / -count - mu * per_x
            per_dy, per_x, offset = (
                each.expand_as(sum_dy).flatten(1)[..., None] for each in (gamma * r, per_x, offset)
            )
            d_part = torch.addcmul(offset, x_part, per_x).addcmul_(dy_part, per_dy)
            dx[part] = d_part.view(x[part].shape)
        return dx, d_weight.flatten(), d_bias.flatten(), None, None


def _channels_last(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d
