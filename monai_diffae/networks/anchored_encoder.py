"""Fixed features of images, their principal components, and an encoder whose z_sem contains these components."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_diffae.errors import CohortError, counted
from monai_diffae.networks.blocks import CellMeans

_LEAST_SHARE = 1e-10  # of the largest variance; smaller ones are rounding errors
_FAINT_VARIANCE = 0.01  # of a patch, at which its contrast counts half
_WHITENED_FLOOR = 0.1  # added to the variances by which patches are whitened: the smallest are noise
_MOST_PATCHES = 50_000  # in which words are found
MOST_PIXELS = {2: 32, 3: 16}
"""Per axis, of images in which words are looked for, by the number of axes."""
_NUM_WORDS, _PATCH, _CELLS = {2: 200, 3: 100}, {2: 6, 3: 5}, {2: 4, 3: 3}


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


class PatchWords(nn.Module):
    """Images (B, C, *S) -> (B, K * prod(cells)): how much the patches in each cell look like K typical ones, the words.

    The words are found in the training images by k-means (Coates, Ng and Lee, AISTATS 2011). Each patch has a mean of 0
    and a variance of about 1 and is whitened before, so that words depend little on brightness, contrast and exposure.
    A patch counts for each word that is nearer than the words are on average, by as much as it is nearer.

    Args:
        size: pixels per axis of the images; with more than 32 (16 in 3D), they are averaged to that many first.
        in_channels: channels of the images, in the model's range of -1 to 1.
        num_words: the number K of words; None: 200, in 3D 100.
        patch: pixels per axis of a patch; None: 6, in 3D 5.
        cells: cells per axis over which patches are averaged; None: 4, in 3D 3.
        asymmetry: return the absolute difference to the features of the mirrored image instead. It is mirrored from
            left to right: along the last axis, in 3D the first; not for sagittal slices.

    Example:
        >>> words = PatchWords([32, 32], num_words=20)
        >>> words.fit(torch.rand(30, 1, 32, 32))
        >>> words(torch.rand(2, 1, 64, 64)).shape
        torch.Size([2, 320])
    """

    if TYPE_CHECKING:
        filters: Tensor
        offset: Tensor
        words: Tensor

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int = 1,
        num_words: int | None = None,
        patch: int | None = None,
        cells: int | None = None,
        asymmetry: bool = False,
    ) -> None:
        super().__init__()
        dims = len(size)
        self.asymmetry, self.left_right = asymmetry, 2 if dims == 3 else -1
        num_words, patch, cells = num_words or _NUM_WORDS[dims], patch or _PATCH[dims], cells or _CELLS[dims]
        small = [min(side, MOST_PIXELS[dims]) for side in size]
        self.sides = [min(patch, side) for side in small]
        num = [side - length + 1 for side, length in zip(small, self.sides, strict=True)]  # patches per axis
        self.shrink, self.pool = CellMeans(small), CellMeans([min(cells, count) for count in num])
        width = in_channels * math.prod(self.sides)
        self.register_buffer("filters", torch.zeros(width, in_channels, *self.sides))  # they centre and whiten
        self.register_buffer("offset", torch.zeros(width))
        self.register_buffer("words", torch.zeros(num_words, width))
        self.faint = _FAINT_VARIANCE
        self.out_features = num_words * math.prod(self.pool.cells)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, F) of images (B, C, *S), in their dtype."""
        features = self._features(x.float())
        if self.asymmetry:
            features = (features - self._features(x.float().flip([self.left_right]))).abs()
        return features.to(x.dtype)

    def _features(self, x: Tensor) -> Tensor:
        small = self.shrink(x)
        ones = torch.ones_like(self.filters[:1]) / self.filters.shape[0]
        variance = _convolved(small.square(), ones) - _convolved(small, ones).square()
        white = _convolved(small, self.filters) / (variance.clamp(min=0) + self.faint).sqrt()
        positions = white.shape[2:]
        patches = white.flatten(2) - self.offset[:, None]
        squares = patches.square().sum(dim=1, keepdim=True) + self.words.square().sum(dim=1)[:, None]
        distances = (squares - 2 * torch.matmul(self.words, patches)).clamp(min=0).sqrt()
        nearer = (distances.mean(dim=1, keepdim=True) - distances).clamp(min=0)
        return self.pool(nearer.unflatten(2, positions)).flatten(1)

    @torch.jit.unused
    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Find the words in training images (N, C, *S)."""
        from sklearn.cluster import MiniBatchKMeans

        generator = torch.Generator().manual_seed(0)
        share = -(-_MOST_PATCHES // len(images))
        parts = []
        for image in self.shrink(images.float()).cpu():
            patches = image
            for axis, side in enumerate(self.sides):
                patches = patches.unfold(axis + 1, side, 1)
            patches = patches.movedim(0, len(self.sides)).flatten(len(self.sides)).flatten(0, -2)
            patches = patches[patches.var(dim=1) > self.faint]  # not of the background
            parts.append(patches[torch.randperm(len(patches), generator=generator)[:share]])
        patches = torch.cat(parts).double()
        if not len(patches):
            raise CohortError("the training images have no contrast, so there are no typical patches to find")
        patches = patches.repeat(-(-len(self.words) // len(patches)), 1)  # of few tiny images; words then repeat, too
        patches = patches - patches.mean(dim=1, keepdim=True)
        patches = patches / (patches.square().mean(dim=1, keepdim=True) + self.faint).sqrt()
        variances, vectors = torch.linalg.eigh(torch.cov(patches.T))
        whiten = (vectors / (variances.clamp(min=0) + _WHITENED_FLOOR).sqrt()) @ vectors.T
        offset = whiten @ patches.mean(dim=0)
        white = (patches @ whiten - offset).float().numpy()
        means = MiniBatchKMeans(len(self.words), random_state=0, batch_size=4096, n_init=1, max_iter=30)
        self.words.copy_(torch.from_numpy(means.fit(white).cluster_centers_))
        self.offset.copy_(offset)
        self.filters.copy_((whiten - whiten.mean(dim=1, keepdim=True)).reshape(self.filters.shape))


def _convolved(x: Tensor, filters: Tensor) -> Tensor:
    """The sums of patches (B, C, *S) weighted by filters (F, C, *side), without padding."""
    return F.conv2d(x, filters) if x.dim() == 4 else F.conv3d(x, filters)


class FixedComponents(nn.Module):
    """Images (B, C, *S) -> (B, K): principal components of the features of fixed networks, the branches.

    They are fitted to training images (:meth:`fit`). Each branch is scaled to a total variance of 1. The components
    keep their proportions, with a mean variance of 1: the last ones are noise.

    Args:
        branches: fixed networks, images -> features (B, F), each with the attribute ``out_features``, such as
            :class:`PatchWords`, :class:`PooledVoxels`, or a frozen :class:`~monai_diffae.networks.PlanarAdapter`.
        channels: the number K of components; with n training cases, those after the first n - 1 are 0.

    Example:
        >>> components = FixedComponents([PooledVoxels([4, 4])], channels=8)
        >>> components.fit([torch.randn(20, 1, 16, 16)])
        >>> components(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 8])
    """

    if TYPE_CHECKING:
        mean: Tensor
        axes: Tensor

    def __init__(self, branches: Sequence[nn.Module], channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.branches.requires_grad_(False)
        self.widths = [int(branch.out_features) for branch in branches]  # type: ignore[arg-type]
        self.register_buffer("mean", torch.zeros(sum(self.widths)))
        self.register_buffer("axes", torch.zeros(channels, sum(self.widths)))

    def train(self, mode: bool = True) -> FixedComponents:
        """Switch between training and evaluation; the branches stay in evaluation mode."""
        super().train(mode)
        self.branches.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The components (B, K) of images (B, C, *S), in their dtype (also under autocast)."""
        return self.components(x)

    @property
    def is_fitted(self) -> bool:
        """Whether the components are there."""
        return bool(self.axes.any())

    @torch.jit.unused
    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit the components to batches of training images (B, C, *S), whose features must all fit into memory."""
        kept: list[list[Tensor]] = [[] for _ in self.branches]
        for images in batches:
            for branch, parts in zip(self.branches, kept, strict=True):
                x = images.to(self.mean.device)
                parts.append(branch.shrink(x) if isinstance(branch, PatchWords) else branch(x))
        num = sum(len(part) for part in kept[0])
        features = torch.cat([_fitted(*pair) for pair in zip(self.branches, kept, strict=True)], dim=1).double()
        mean = features.mean(dim=0)
        centred = features - mean
        scale = torch.cat(
            [
                part.square().sum(dim=1).mean().rsqrt().expand(part.shape[1])
                for part in centred.split(self.widths, dim=1)
            ]
        )
        if not scale.isfinite().all():
            raise CohortError(f"FixedComponents: cannot be fitted to {counted(num, 'image')} without variation")
        stds, axes = _principal_axes(centred * scale, len(self.axes))
        axes = axes / stds.square().mean().sqrt() * scale
        self.mean.copy_(mean)
        self.axes.zero_()
        self.axes[: len(axes)] = axes.to(self.axes)

    def components(self, x: Tensor) -> Tensor:
        """As :meth:`forward`; without autocast, as distances to words would lose most of their digits."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript would compile a second condition
            if torch.is_autocast_enabled(x.device.type):
                with torch.autocast(x.device.type, enabled=False):
                    return self._projected(x)
        return self._projected(x)

    def _projected(self, x: Tensor) -> Tensor:
        features: list[Tensor] = []
        for branch in self.branches:
            features.append(branch(x))
        return torch.matmul(torch.cat(features, dim=1) - self.mean, self.axes.t()).to(x.dtype)


class AnchoredEncoder(FixedComponents):
    """Images (B, C, *S) -> z_sem (B, z_channels) = [anchored | free].

    The anchored numbers are fixed components, fitted to the training cases before the first step. So a probe on z_sem
    cannot be far behind one on these components. The free numbers are those of a trained encoder; the decoder sees
    both.

    Args:
        free: the encoder that is trained, such as a :class:`~monai_diffae.networks.SemanticEncoder`.
        branches: as in :class:`FixedComponents`.
        anchored_channels: the number of components.
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

    def __init__(
        self, free: nn.Module, branches: Sequence[nn.Module], anchored_channels: int = 128, free_dropout: float = 0.1
    ) -> None:
        super().__init__(branches, anchored_channels)
        width: int = free.z_channels  # type: ignore[assignment]
        self.free = free
        self.anchored_channels = anchored_channels
        self.free_dropout = free_dropout
        self.z_channels = anchored_channels + width
        for name in ("spatial_dims", "in_channels", "size_divisors"):
            setattr(self, name, getattr(free, name, None))

    def forward(self, x: Tensor) -> Tensor:
        """Encode images (B, C, *S) to z_sem (B, z_channels), in the dtype of ``x`` (also under autocast)."""
        free = self.free(x)
        if self.training and self.free_dropout > 0:
            free = free * (torch.rand(free.shape[0], 1, device=free.device) >= self.free_dropout)
        return torch.cat([self.components(x), free.to(x.dtype)], dim=1)

    @torch.jit.unused
    def features(self, x: Tensor) -> Tensor:
        """The anchored numbers with the features (B, K + F) of ``free`` before its last layer."""
        return torch.cat([self.components(x), self.free.features(x)], dim=1)  # type: ignore[operator]

    @torch.jit.unused
    def project(self, features: Tensor) -> Tensor:
        """z_sem (B, z_channels) from :meth:`features`."""
        anchored, free = features.tensor_split([self.anchored_channels], dim=1)
        return torch.cat([anchored, self.free.project(free.contiguous())], dim=1)  # type: ignore[operator]


def _fitted(branch: nn.Module, parts: list[Tensor]) -> Tensor:
    """The features (N, F) of all images; ``parts`` are those of a branch, or shrunk images in which to find words."""
    found = torch.cat(parts)
    if not isinstance(branch, PatchWords):
        return found
    branch.fit(found)
    return torch.cat([branch(images) for images in found.split(64)])


def _principal_axes(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
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
