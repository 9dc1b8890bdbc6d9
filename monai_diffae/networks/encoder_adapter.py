"""Other encoders: an adapter for networks of other packages, and principal components of the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_diffae.errors import ConfigError, quoted


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

    Raises:
        ConfigError: the settings do not fit each other or ``network``; in ``forward``, a wrong number of channels.

    Example:
        >>> from monai.networks.nets import resnet18
        >>> network = resnet18(spatial_dims=2, n_input_channels=3, feed_forward=False)
        >>> encoder = EncoderAdapter(network, size=(64, 64), mean=0.5, std=0.2, projection=nn.Linear(512, 16))
        >>> encoder(torch.zeros(2, 1, 48, 40)).shape
        torch.Size([2, 16])
    """

    if TYPE_CHECKING:  # TorchScript would try to compile an annotation that it sees
        mean: torch.Tensor
        std: torch.Tensor

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
                f"in_channels is {in_channels}: {type(network).__name__} takes {channels} channels, or one that is "
                "repeated; change the images, or channels"
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            x: images (B, in_channels, *S) in ``model_range``.

        Returns:
            z_sem (B, z_channels), in the dtype of ``x`` (also under autocast).
        """
        return self.project(self.features(x)).to(x.dtype)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The features (B, F) of images (B, in_channels, *S) before the projection."""
        if not torch.jit.is_scripting() and x.shape[1] != self.in_channels:
            raise ConfigError(
                f"the image to encode has {x.shape[1]} channels: the encoder was built for {self.in_channels}; use "
                "images like those of its training"
            )
        features = self.network(self.prepare(x))
        if isinstance(features, (tuple, list)):
            features = features[0]
        if features.ndim == x.ndim:
            features = features.flatten(2).mean(dim=2)
        return features

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """z_sem (B, z_channels) from :meth:`features`."""
        return self.projection(features)

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_channels, *S) in ``model_range`` as ``network`` takes them: (B, channels, *S or *size)."""
        h = (x - self.low) / (self.high - self.low)
        if self.size is not None:
            if h.ndim == 5:
                h = F.interpolate(h, size=self.size, mode="trilinear")
            else:
                h = F.interpolate(h, size=self.size, mode="bilinear", antialias=True)
        per_channel = [1, self.channels] + [1] * (h.ndim - 2)
        return (h - self.mean.view(per_channel)) / self.std.view(per_channel)

    def load_pretrained(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give ``network`` pretrained weights; those of the replaced ``head`` are ignored.

        Args:
            weights: the state dict of the network as its package saves it.
        """
        prefix = None if self.head is None else f"{self.head}."
        kept = {name: value for name, value in weights.items() if prefix is None or not name.startswith(prefix)}
        own = self.network.state_dict()
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
        self.network.load_state_dict(kept)


def _checked_range(model_range: Sequence[float]) -> tuple[float, float]:
    if len(model_range) != 2 or not model_range[0] < model_range[1]:
        raise ConfigError(f"model_range is {list(model_range)}; it must be two numbers, the lower one first")
    return float(model_range[0]), float(model_range[1])


def _per_channel(name: str, values: float | Sequence[float], channels: int) -> torch.Tensor:
    numbers = [float(values)] * channels if isinstance(values, (int, float)) else [float(v) for v in values]
    if len(numbers) != channels:
        raise ConfigError(f"{name} has {len(numbers)} numbers; give one, or one for each of the {channels} channels")
    if name == "std" and min(numbers) <= 0:
        raise ConfigError(f"std is {numbers}; it must be above 0")
    return torch.tensor(numbers)


def _replace_by_identity(network: nn.Module, name: str) -> None:
    parent_name, _, last = name.rpartition(".")
    try:
        parent = network.get_submodule(parent_name)
        parent.get_submodule(last)
    except AttributeError as error:
        layers = ", ".join(child for child, _ in network.named_children())
        raise ConfigError(f"head: {type(network).__name__} has no layer {quoted(name)}; it has {layers}") from error
    setattr(parent, last, nn.Identity())


class PixelEncoder(nn.Module):
    """Encodes images to K fixed linear features of their P pixels, less a mean ``[P]``, along axes ``[K, P]``.

    There is no decoder.
    """

    def __init__(self, mean: NDArray[np.floating[Any]], axes: NDArray[np.floating[Any]]) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.from_numpy(mean).float(), requires_grad=False)
        self.axes = nn.Parameter(torch.from_numpy(axes).float(), requires_grad=False)
        self.z_channels = len(axes)

    def encode(self, images: Tensor) -> Tensor:
        """The features (B, K) of images (B, C, *S)."""
        return (images.flatten(1) - self.mean) @ self.axes.T
