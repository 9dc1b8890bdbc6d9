"""Other encoders: adapters for networks of other packages, also of slices, and principal components."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_diffae.errors import ConfigError, counted, quoted


class EncoderAdapter(nn.Module):
    """A network of another package as the encoder: prepares its images, and projects its features to z_sem.

    An image is mapped from ``model_range`` to [0, 1], resized, repeated to ``channels`` if it has one channel, and
    normalised by ``mean`` and ``std``. Features (B, F) pass on to ``projection``; feature maps (B, F, *S') are first
    averaged over their positions. With ``DiffusionAutoencoder(..., encoder_frozen=True)``, ``network`` is frozen and
    ``projection`` is trained.

    Args:
        network: prepared images (B, channels, *S) -> features. If it returns several tensors, the first is used.
        in_channels: channels of the images to encode: 1, or as many as ``channels``.
        channels: channels that ``network`` takes.
        size: spatial size to which images are resized; None: as they are.
        model_range: intensities of the images to encode, lowest and highest.
        mean: subtracted from images in [0, 1]; one number, or one per channel.
        std: images are divided by it after that; one number, or one per channel.
        head: the name of a layer to replace by the identity, so that the network gives features instead of scores of
            classes, such as ``fc`` of torchvision's ResNets; None: no layer.
        projection: features (B, F) -> (B, z_channels), such as ``torch.nn.Linear(512, 128)``; None: the features are
            z_sem.
        size_divisors: what each spatial size must be a multiple of; None: the attribute of that name of ``network``,
            if it has one, and 1 if images are resized.

    Example:
        >>> from monai.networks.nets import resnet18
        >>> network = resnet18(spatial_dims=2, n_input_channels=3, feed_forward=False)
        >>> encoder = EncoderAdapter(network, size=(64, 64), mean=0.5, std=0.2, projection=nn.Linear(512, 16))
        >>> encoder(torch.zeros(2, 1, 48, 40)).shape
        torch.Size([2, 16])
    """

    if TYPE_CHECKING:  # TorchScript would try to compile an annotation that it sees
        mean: Tensor
        std: Tensor

    def __init__(
        self,
        network: nn.Module,
        in_channels: int = 1,
        channels: int = 3,
        size: Sequence[int] | None = None,
        model_range: Sequence[float] = (-1.0, 1.0),
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        head: str | None = None,
        projection: nn.Module | None = None,
        size_divisors: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if in_channels not in (1, channels):
            raise ConfigError(
                f"in_channels is {in_channels}: {type(network).__name__} takes {counted(channels, 'channel')}, or "
                "one that is repeated; change the images, or channels"
            )
        self.low, self.high = _checked_range(model_range)
        self.in_channels = in_channels
        self.channels = channels
        self.size = None if size is None else [int(n) for n in size]
        if size_divisors is None and size is None:
            size_divisors = getattr(network, "size_divisors", None)
        self.size_divisors = None if size_divisors is None else tuple(size_divisors)
        # not saved with the weights: these numbers come from the config
        self.register_buffer("mean", _per_channel("mean", mean, channels), persistent=False)
        self.register_buffer("std", _per_channel("std", std, channels), persistent=False)
        self.head = head
        if head is not None:
            _replace_by_identity(network, head)
        self.network = network
        self.projection = nn.Identity() if projection is None else projection
        width = getattr(projection, "out_features", None)
        self.z_channels = width if isinstance(width, int) else None

    def forward(self, x: Tensor) -> Tensor:
        """Encode images.

        Args:
            x: images (B, in_channels, *S) in ``model_range``.

        Returns:
            z_sem (B, z_channels), in the dtype of ``x`` (also under autocast).
        """
        return self.project(self.features(x)).to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, F) of images (B, in_channels, *S), before the projection."""
        if not torch.jit.is_scripting() and x.shape[1] != self.in_channels:
            raise ConfigError(
                f"the image to encode has {counted(x.shape[1], 'channel')}: the encoder was built for "
                f"{self.in_channels}; use images like those of its training"
            )
        features = self.network(self.prepare(x))
        if isinstance(features, (tuple, list)):
            features = features[0]
        if features.ndim == x.ndim:
            features = features.flatten(2).mean(dim=2)
        return features

    def project(self, features: Tensor) -> Tensor:
        """z_sem (B, z_channels) from :meth:`features`."""
        return self.projection(features)

    def prepare(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, *S) in ``model_range`` as ``network`` takes them: (B, channels, *S or *size)."""
        h = (x - self.low) / (self.high - self.low)
        if self.size is not None:
            if h.ndim == 5:
                h = F.interpolate(h, size=self.size, mode="trilinear")
            else:
                h = F.interpolate(h, size=self.size, mode="bilinear", antialias=True)
        per_channel = [1, self.channels] + [1] * (h.ndim - 2)
        return (h - self.mean.view(per_channel)) / self.std.view(per_channel)

    def load_pretrained(self, weights: Mapping[str, Tensor], ignored: Sequence[str] = ()) -> None:
        """Give ``network`` pretrained weights; those of the replaced ``head`` are ignored.

        Args:
            weights: the state dict of the network as its package saves it.
            ignored: names of layers that may have other weights, or none, because nothing uses them.
        """
        prefixes = tuple(f"{name}." for name in (self.head, *ignored) if name is not None)
        kept, own = (
            {name: value for name, value in state.items() if not f"{name}.".startswith(prefixes)}
            for state in (weights, self.network.state_dict())
        )
        wrong = sorted(
            name
            for name in own.keys() | kept.keys()
            if name not in own or name not in kept or own[name].shape != kept[name].shape
        )
        if wrong:
            raise ConfigError(
                f"the pretrained weights are not those of {type(self.network).__name__}: {len(wrong)} differ, the "
                f"first is {quoted(wrong[0])}; use the weights of the same network"
            )
        self.network.load_state_dict(kept, strict=False)


def _checked_range(model_range: Sequence[float]) -> tuple[float, float]:
    if len(model_range) != 2 or not model_range[0] < model_range[1]:
        raise ConfigError(f"model_range is {list(model_range)}; it must be two numbers, the lower one first")
    return float(model_range[0]), float(model_range[1])


def _per_channel(name: str, values: float | Sequence[float], channels: int) -> Tensor:
    numbers = [float(values)] * channels if isinstance(values, (int, float)) else [float(v) for v in values]
    if len(numbers) != channels:
        raise ConfigError(f"{name} has {counted(len(numbers), 'number')}; give one, or one per channel ({channels})")
    if name == "std" and min(numbers) <= 0:
        raise ConfigError(f"std is {numbers}; it must be above 0")
    return torch.tensor(numbers)


def _layer(network: nn.Module, name: str, argument: str = "layers") -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        has = ", ".join(child for child, _ in network.named_children())
        raise ConfigError(f"{argument}: {type(network).__name__} has no layer {quoted(name)}; it has {has}") from error


def _replace_by_identity(network: nn.Module, name: str) -> None:
    _layer(network, name, "head")
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())


class PlanarAdapter(EncoderAdapter):
    """A frozen 2D network as the encoder of volumes: features of slices along each axis, as in Raptor (2507.08254).

    Slices at even distances along each axis are prepared as by :class:`EncoderAdapter`. Of each layer, a feature map is
    averaged to ``cells`` x ``cells``, a vector stays, and of the tokens (N, T, F) of a vision transformer there are the
    first one, if it has no place in the image, and the map of the others. The features are averaged over the slices of
    an axis; those of the axes follow each other. A 2D image is its only slice.

    The network is never trained. Its layers are read by hooks, so TorchScript cannot compile it; ``torch.export`` can.

    Args:
        network: prepared images (N, channels, *size) -> anything.
        layers: names of the layers of ``network`` whose outputs are the features, such as ``layer3``; none: its output.
        spatial_dims: 2 or 3, of the images to encode.
        slices: how many slices along each axis of a volume, at most.
        cells: cells along each side of a feature map.
        size: spatial size to which slices are resized.
        **arguments: other arguments of :class:`EncoderAdapter`, such as ``model_range``, ``mean`` and ``std``.

    Attributes:
        out_features: how many features an image has.

    Example:
        >>> from monai.networks.nets import resnet18
        >>> network = resnet18(spatial_dims=2, n_input_channels=3, feed_forward=False)
        >>> encoder = PlanarAdapter(network, ["layer1", "layer4"], slices=2, cells=1, size=(64, 64))
        >>> encoder(torch.zeros(2, 1, 16, 20, 16)).shape, encoder.out_features
        (torch.Size([2, 1728]), 1728)
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str] = (),
        spatial_dims: int = 3,
        slices: int = 8,
        cells: int = 3,
        size: Sequence[int] = (224, 224),
        **arguments: Any,
    ) -> None:
        super().__init__(network, size=size, **arguments)
        self.layers, self.spatial_dims, self.slices, self.cells = list(layers), spatial_dims, slices, cells
        network.requires_grad_(False).eval()
        num = self._slice_features(torch.zeros(1, self.in_channels, *size)).shape[1]
        self.out_features = 3 * num if spatial_dims == 3 else num
        if self.z_channels is None:
            self.z_channels = self.out_features

    def train(self, mode: bool = True) -> PlanarAdapter:
        """Switch between training and evaluation; the network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """Features (B, F) of images (B, in_channels, *S): of slices along each axis, averaged, if they are volumes."""
        if x.ndim == 4:
            return self._slice_features(x)
        parts = []
        for axis, n in enumerate(x.shape[2:], start=2):
            num = min(self.slices, n)
            middles = ((torch.arange(num, device=x.device) + 0.5) * n / num).long()  # of equal parts
            slices = x.index_select(axis, middles).movedim(axis, 1)
            parts.append(self._slice_features(slices.flatten(0, 1)).unflatten(0, (-1, num)).mean(dim=1))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def _slice_features(self, images: Tensor) -> Tensor:
        """The features (N, F) of all layers, for images (N, C, H, W)."""
        outputs: dict[str, Any] = {}
        hooks = [
            _layer(self.network, name).register_forward_hook(lambda _m, _x, y, name=name: outputs.update({name: y}))
            for name in self.layers
        ]
        try:
            output = self.network(self.prepare(images))
        finally:
            for hook in hooks:
                hook.remove()
        outputs = {name: outputs[name] for name in self.layers} or {"output": output}
        return torch.cat([self._pooled(name, value) for name, value in outputs.items()], dim=1)

    def _pooled(self, name: str, output: Any) -> Tensor:
        """The features (N, F') of the output of a layer."""
        output = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(output, Tensor) and output.ndim == 2:
            return output
        if isinstance(output, Tensor) and output.ndim == 3:
            side = math.isqrt(output.shape[1])  # prepared images are squares
            first, patches = output.tensor_split([output.shape[1] - side**2], dim=1)
            maps = self._pooled(name, patches.mT.unflatten(2, (side, side)))
            return torch.cat([first[:, :1].flatten(1), maps], dim=1)
        if isinstance(output, Tensor) and output.ndim == 4:
            return F.adaptive_avg_pool2d(output, self.cells).flatten(1)
        raise ConfigError(f"layers: {quoted(name)} gives no feature map, vector or tokens; choose another layer")


class PixelEncoder(nn.Module):
    """Encodes images to K fixed linear features of their P pixels, less a mean ``[P]``, along axes ``[K, P]``.

    With ``features``, a network that maps images to (B, P), these take the place of the pixels. There is no decoder.
    """

    def __init__(
        self, mean: NDArray[np.floating[Any]], axes: NDArray[np.floating[Any]], features: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.features = nn.Flatten() if features is None else features
        self.mean = nn.Parameter(torch.from_numpy(mean).float(), requires_grad=False)
        self.axes = nn.Parameter(torch.from_numpy(axes).float(), requires_grad=False)
        self.z_channels = len(axes)

    def encode(self, images: Tensor) -> Tensor:
        """The features (B, K) of images (B, C, *S)."""
        return (self.features(images) - self.mean) @ self.axes.T
