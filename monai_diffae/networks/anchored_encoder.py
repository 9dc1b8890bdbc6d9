"""An encoder whose z_sem contains principal components of fixed features, beside the code of a trained encoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import normalize

from monai_diffae.errors import ConfigError, counted
from monai_diffae.networks.blocks import CellMeans

_LEAST_SHARE = 1e-10  # of the largest variance; smaller ones are rounding errors
_MOST_PIXELS = {2: 64, 3: 32}  # per axis
_CELL = 4  # pixels per axis over which gradients are averaged
_FAINT = 0.04  # mean steepness of a cell, below which it counts less: 2 % of the range
_FLOOR = 64  # components after this one are not scaled up further: the last ones are noise


class PooledVoxels(nn.Sequential):
    """Images (B, C, *S) -> (B, C * prod(size)): means over a grid of cells.

    Args:
        size: cells per axis.
        in_channels: channels of the images.

    Example:
        >>> PooledVoxels([4, 4])(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 16])
    """

    def __init__(self, size: Sequence[int], in_channels: int = 1) -> None:
        super().__init__(CellMeans(size), nn.Flatten())
        self.out_features = in_channels * math.prod(size)


class OrientedGradients(nn.Module):
    """Images (B, C, *S) -> (B, C * D * prod(size // 4)): how steeply intensities rise in D directions, in each cell.

    Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) in 2D (D = 8) and 3D (D = 26): gradients are shared
    out to the directions of a pixel's neighbors by the squared cosine, and averaged over cells of 4 pixels per axis.
    The numbers of a cell have a norm of about 1, so that they depend little on brightness, contrast and exposure, which
    differ between hospitals.

    Args:
        size: pixels per axis of the images; with more than 64 (32 in 3D), they are averaged to that many first.
        in_channels: channels of the images, in the model's range of -1 to 1.

    Example:
        >>> OrientedGradients([32, 32])(torch.rand(2, 1, 64, 64)).shape
        torch.Size([2, 512])
    """

    if TYPE_CHECKING:  # TorchScript would try to compile an annotation that it sees
        directions: torch.Tensor

    def __init__(self, size: Sequence[int], in_channels: int = 1) -> None:
        super().__init__()
        steps = [step for step in product((-1.0, 0.0, 1.0), repeat=len(size)) if any(step)]
        self.register_buffer("directions", normalize(torch.tensor(steps), dim=1), persistent=False)
        small = [min(side, _MOST_PIXELS[len(size)]) for side in size]
        cells = [max(1, side // _CELL) for side in small]
        self.shrink, self.pool = CellMeans(small), CellMeans(cells)
        self.faint = _FAINT
        self.out_features = in_channels * len(steps) * math.prod(cells)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, F) of images (B, C, *S), in their dtype."""
        small = self.shrink(x.float())
        gradients = torch.stack([_differences(small, axis + 2) for axis in range(self.directions.shape[1])], dim=-1)
        steepness = gradients.square().sum(dim=-1).sqrt().clamp(min=1e-8)
        cells: list[torch.Tensor] = []
        for direction in self.directions:
            along = (gradients * direction).sum(dim=-1).clamp(min=0)
            cells.append(self.pool(along.square() / steepness))
        histograms = torch.stack(cells, dim=-1)
        norms = (histograms.square().sum(dim=-1, keepdim=True) + self.faint**2).sqrt()
        return (histograms / norms).flatten(1).to(x.dtype)


def _differences(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Central differences along an axis, as of an image whose border is repeated."""
    last = x.shape[axis] - 1
    after = torch.cat([x.narrow(axis, 1, last), x.narrow(axis, last, 1)], dim=axis)
    before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, last)], dim=axis)
    return (after - before) / 2


class AnchoredEncoder(nn.Module):
    """Images (B, C, *S) -> z_sem (B, z_channels) = [anchored | free].

    The anchored numbers are principal components of the features of ``branches``, fitted to the training cases before
    the first step (:meth:`fit`) and then fixed. So a probe on z_sem cannot be far behind one on these components. The
    free numbers are those of a trained encoder; the decoder sees both.

    Each branch is scaled to a total variance of 1, and each component to a standard deviation of 1, but those after the
    64th by the same factor as that one.

    Args:
        free: the encoder that is trained, such as a :class:`~monai_diffae.networks.SemanticEncoder`.
        branches: fixed networks, images -> features (B, F), each with the attribute ``out_features``, such as
            :class:`PooledVoxels`, or a frozen :class:`~monai_diffae.networks.PlanarAdapter`.
        anchored_channels: the number of components; with n training cases, those after the first n - 1 are 0.
        free_dropout: the probability in training that an image's free numbers are replaced by 0, so that the decoder
            also uses the anchored ones.

    Example:
        >>> from monai_diffae.networks import SemanticEncoder
        >>> free = SemanticEncoder(2, 1, z_channels=4, base_channels=8, channel_mult=(1, 2), num_res_blocks=1)
        >>> encoder = AnchoredEncoder(free, [PooledVoxels([4, 4])], anchored_channels=8)
        >>> encoder.fit([torch.randn(20, 1, 16, 16)])
        >>> encoder.eval()(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 12])
    """

    if TYPE_CHECKING:
        mean: torch.Tensor
        axes: torch.Tensor

    def __init__(
        self, free: nn.Module, branches: Sequence[nn.Module], anchored_channels: int = 128, free_dropout: float = 0.1
    ) -> None:
        super().__init__()
        width = getattr(free, "z_channels", None)
        if not isinstance(width, int) or not branches:
            raise ConfigError("AnchoredEncoder: needs a free encoder with z_channels, and at least one branch")
        self.free = free
        self.branches = nn.ModuleList(branches)
        self.branches.requires_grad_(False)
        self.widths = [int(branch.out_features) for branch in branches]  # type: ignore[arg-type]
        self.anchored_channels = anchored_channels
        self.free_dropout = free_dropout
        self.z_channels = anchored_channels + width
        for name in ("spatial_dims", "in_channels", "size_divisors"):
            setattr(self, name, getattr(free, name, None))
        self.register_buffer("mean", torch.zeros(sum(self.widths)))
        self.register_buffer("axes", torch.zeros(anchored_channels, sum(self.widths)))

    def train(self, mode: bool = True) -> AnchoredEncoder:
        """Switch between training and evaluation; the branches stay in evaluation mode."""
        super().train(mode)
        self.branches.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode images (B, C, *S) to z_sem (B, z_channels), in the dtype of ``x`` (also under autocast)."""
        free = self.free(x)
        if self.training and self.free_dropout > 0:
            free = free * (torch.rand(free.shape[0], 1, device=free.device) >= self.free_dropout)
        return torch.cat([self._anchored(x), free.to(x.dtype)], dim=1)

    @torch.jit.unused
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The anchored numbers with the features (B, K + F) of ``free`` before its last layer."""
        return torch.cat([self._anchored(x), self.free.features(x)], dim=1)  # type: ignore[operator]

    @torch.jit.unused
    def project(self, features: torch.Tensor) -> torch.Tensor:
        """z_sem (B, z_channels) from :meth:`features`."""
        anchored, free = features.tensor_split([self.anchored_channels], dim=1)
        return torch.cat([anchored, self.free.project(free.contiguous())], dim=1)  # type: ignore[operator]

    @property
    def is_fitted(self) -> bool:
        """Whether the components are there."""
        return bool(self.axes.any())

    @torch.jit.unused
    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Fit the components to batches of training images (B, C, *S), whose features must all fit into memory."""
        parts = [self._branch_features(images.to(self.mean.device)) for images in batches]
        features = torch.cat([self.mean[None, :][:0], *parts]).double()
        mean = features.mean(dim=0)
        centred = features - mean
        scale = torch.cat(
            [
                part.square().sum(dim=1).mean().rsqrt().expand(part.shape[1])
                for part in centred.split(self.widths, dim=1)
            ]
        )
        if len(features) < 2 or not scale.isfinite().all():
            raise ConfigError(
                f"AnchoredEncoder: cannot be fitted to {counted(len(features), 'image')} without variation"
            )
        stds, axes = _principal_axes(centred * scale, self.anchored_channels)
        axes = axes / stds.clamp(min=float(stds[min(_FLOOR, len(stds)) - 1]))[:, None] * scale
        self.mean.copy_(mean)
        self.axes.zero_()
        self.axes[: len(axes)] = axes.to(self.axes)

    def _anchored(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(self._branch_features(x) - self.mean, self.axes.t()).to(x.dtype)

    def _branch_features(self, x: torch.Tensor) -> torch.Tensor:
        features: list[torch.Tensor] = []
        for branch in self.branches:
            features.append(branch(x))
        return torch.cat(features, dim=1)


def _principal_axes(centred: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard deviations [K] and axes [K, F] of centred features (N, F), largest first; K is at most N - 1 and F."""
    num, width = centred.shape
    if width <= num:
        variances, vectors = torch.linalg.eigh(centred.T @ centred / num)
        axes = vectors.T
    else:
        variances, vectors = torch.linalg.eigh(centred @ centred.T / num)
        axes = vectors.T @ centred
    is_real = variances > _LEAST_SHARE * variances[-1]  # twins give components without any variance
    kept = min(count, num - 1, int(is_real.sum()))
    variances, axes = variances.flip(0)[:kept], axes.flip(0)[:kept]
    axes = axes / axes.norm(dim=1, keepdim=True)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return variances.clamp(min=0).sqrt(), axes * largest.sign()
