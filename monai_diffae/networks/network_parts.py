"""The networks of a model as modules that each do one thing, for files that run without this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from monai_diffae.networks.autoencoder import DiffusionAutoencoder
from monai_diffae.networks.first_stage import FirstStage

AXES = {2: ("height", "width"), 3: ("x", "y", "z")}
"""Names of the spatial axes, by their number; those of a volume as its preprocessing orders them."""


@dataclass(frozen=True)
class NetworkPart:
    """One network with the shapes of its inputs, all float32."""

    name: str  #: what it is: ``encoder``, ``denoiser``, ``first_stage_encoder`` or ``first_stage_decoder``
    module: nn.Module  #: takes the image, then the vectors, and returns one tensor
    image: str  #: name of the first input (B, C, *S)
    channels: int  #: its channels C
    size: tuple[int, ...]  #: a spatial size S that it takes
    divisors: tuple[int, ...]  #: what each spatial size must be a multiple of
    output: str  #: name of the output
    #: shapes of the other inputs by name, without the batch axis
    vectors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def inputs(self) -> list[str]:
        """The names of all inputs in their order."""
        return [self.image, *self.vectors]

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the spatial axes."""
        return AXES[len(self.size)]

    @property
    def larger_size(self) -> tuple[int, ...]:
        """Another spatial size that it takes; a network of one size, such as a ViT, may not notice a small change."""
        first, *others = self.size
        return 2 * first, *(size + divisor for size, divisor in zip(others, self.divisors[1:], strict=True))

    def example(self, batch: int, size: Sequence[int]) -> tuple[Tensor, ...]:
        """Inputs of this batch and image size: always the same random values, and times from 0 to 999."""
        generator = torch.Generator().manual_seed(batch)
        image = torch.rand(batch, self.channels, *size, generator=generator) * 2 - 1
        times = {"timesteps": torch.linspace(999, 0, batch)}
        vectors = [
            times[name] if name in times else torch.randn(batch, *shape, generator=generator)
            for name, shape in self.vectors.items()
        ]
        return (image, *vectors)


class ImageEncoder(nn.Module):
    """Images -> z_sem, by the encoder alone or after a first stage; of several outputs, the first is used."""

    def __init__(self, encoder: nn.Module, first_stage: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.first_stage = first_stage

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> (B, Z)."""
        if self.first_stage is not None:
            image = self.first_stage(image)
        z_sem = self.encoder(image)
        if isinstance(z_sem, (tuple, list)):
            z_sem = z_sem[0]
        return z_sem


class LatentEncoder(nn.Module):
    """Images -> normalised latents; keeps a copy of the first stage without its decoder."""

    def __init__(self, first_stage: FirstStage) -> None:
        super().__init__()
        self.first_stage = _without(first_stage, "decoder", "post_quant_conv")

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C', *S / f)."""
        return self.first_stage.to_latents(image)


class LatentDecoder(nn.Module):
    """Normalised latents -> images; keeps a copy of the first stage without its encoder."""

    def __init__(self, first_stage: FirstStage) -> None:
        super().__init__()
        self.first_stage = _without(first_stage, "encoder", "quant_conv_mu", "quant_conv_log_sigma")

    def forward(self, latent: Tensor) -> Tensor:
        """(B, C', *S / f) -> (B, C, *S)."""
        return self.first_stage.to_images(latent)


def _without(first_stage: FirstStage, *names: str) -> FirstStage:
    """A copy without these parts of its autoencoder."""
    kept = deepcopy(first_stage)
    for name in names:
        delattr(kept.autoencoder, name)
    return kept


def autoencoder_parts(
    network: DiffusionAutoencoder, image_shape: Sequence[int], first_stage: FirstStage | None
) -> list[NetworkPart]:
    """The encoder and the denoiser of a diffusion autoencoder; with a first stage, its two networks as well."""
    seen_channels = network.encoder_in_channels
    size, divisors, latent_size = tuple(image_shape[1:]), network.size_divisors, tuple(image_shape[1:])
    encoder = ImageEncoder(network.encoder)
    stages = [] if first_stage is None else first_stage_parts(first_stage, size)
    if first_stage is not None:
        seen_channels = first_stage.in_channels
        divisors = tuple(f * d for f, d in zip(first_stage.size_divisors, divisors, strict=True))
        latent_size = first_stage.latent_shape(image_shape)[1:]
        encoder = ImageEncoder(network.encoder, LatentEncoder(first_stage))
    return [
        NetworkPart("encoder", encoder, "image", seen_channels or image_shape[0], size, divisors, "z_sem"),
        NetworkPart(
            "denoiser",
            network.unet,
            "x_t",
            network.in_channels,
            latent_size,
            network.size_divisors,
            "prediction",
            {"timesteps": (), "z_sem": (network.z_channels,)},
        ),
        *stages,
    ]


def first_stage_parts(first_stage: FirstStage, size: Sequence[int]) -> list[NetworkPart]:
    """The two networks of a first stage, for images of this spatial size."""
    factors = first_stage.size_divisors
    latent_channels, *latent_size = first_stage.latent_shape((first_stage.in_channels, *size))
    return [
        NetworkPart(
            "first_stage_encoder",
            LatentEncoder(first_stage),
            "image",
            first_stage.in_channels,
            tuple(size),
            factors,
            "latent",
        ),
        NetworkPart(
            "first_stage_decoder",
            LatentDecoder(first_stage),
            "latent",
            latent_channels,
            tuple(latent_size),
            (1,) * len(factors),
            "image",
        ),
    ]
