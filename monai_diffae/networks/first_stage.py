"""A first stage: an autoencoder between large images and the small latents that a diffusion model works on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from monai_diffae.errors import ConfigError
from monai_diffae.networks.blocks import check_images, shown_divisors

DrawNoise = Callable[[Sequence[int], torch.device], Tensor]


class FirstStage(nn.Module):
    """MONAI's ``AutoencoderKL`` or ``AutoencoderKlMaisi`` with normalised latents, as latent diffusion needs them.

    Latent diffusion, Rombach et al., CVPR 2022 (arXiv 2112.10752). Latents from ``encode`` have mean 0 in each channel
    and standard deviation 1 over all channels. :meth:`measure` determines shift and scale, which are saved with the
    weights. All channels have the same scale, so that channels with little content stay small. The latents of an image
    are the mean of its posterior, not a random sample.

    Args:
        autoencoder: MONAI's autoencoder; each level below the first halves the size of every axis. MAISI's layers no
            longer compute in parts, nor in float16.
        image_range: decoded images are clipped to this range; None: no clipping. Latents are never clipped.

    Attributes:
        latent_channels: channels of the latents.
        size_divisors: the factors by which latents are smaller than images, one per axis; each spatial size of an image
            must be a multiple of its factor.
        description: how it was trained, if it was loaded from a bundle.

    Example:
        >>> autoencoder = AutoencoderKL(3, channels=(4, 8), attention_levels=(False, False), num_res_blocks=1,
        ...     norm_num_groups=4, with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False)
        >>> first_stage = FirstStage(autoencoder).eval()
        >>> images = torch.rand(2, 1, 8, 8, 12) * 2 - 1
        >>> first_stage.measure(images)
        >>> latents = first_stage.encode(images)
        >>> latents.shape, first_stage.latent_shape((1, 8, 8, 12)), f"{float(latents.std()):.2f}"
        (torch.Size([2, 3, 4, 4, 6]), (3, 4, 4, 6), '1.00')
        >>> first_stage.decode(latents).shape
        torch.Size([2, 1, 8, 8, 12])
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, autoencoder: AutoencoderKL, image_range: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.image_range = image_range
        self.description: dict[str, Any] = {}
        self.latent_channels = int(autoencoder.latent_channels)
        weight = next(autoencoder.encoder.parameters())  # MAISI's encoder has no attributes that say it
        self.spatial_dims, self.in_channels = weight.ndim - 2, weight.shape[1]
        names = [type(module).__name__ for module in autoencoder.encoder.modules()]
        self.size_divisors = (2 ** sum(name.endswith("Downsample") for name in names),) * self.spatial_dims
        for module in autoencoder.modules():
            if isinstance(module, nn.GroupNorm):
                module.__class__ = nn.GroupNorm  # MAISI's computes the same in parts, perhaps in float16
            if "num_splits" in vars(module):
                vars(module)["num_splits"] = 1  # more (MONAI 1.6.1) lose voxels of sizes that they do not divide
        self.register_buffer("latent_mean", torch.full((self.latent_channels,), math.nan))
        self.register_buffer("latent_std", torch.tensor(math.nan))

    def forward(self, images: Tensor, draw_noise: DrawNoise | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Encode and decode images; in training, sample their latents around the mean.

        Args:
            images: (B, C, *S).
            draw_noise: returns the noise of the latents (B, C', *S / f), given their shape (C', *S / f) and device;
                None: the latents are the mean of the posterior.

        Returns:
            The reconstruction (B, C, *S), in ``image_range``; with ``draw_noise``, the reconstruction without
            clipping, and the posterior's mean and sigma.
        """
        self._check(images)
        if draw_noise is None:
            return self._clipped(self.autoencoder.decode(self._posterior_mean(images)).float())
        mean, sigma = self.autoencoder.encode(images)
        noise = draw_noise(mean.shape[1:], mean.device).to(sigma.dtype)
        return self.autoencoder.decode(mean + noise * sigma), mean, sigma

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The latents (B, C', *S / f), float32, of images (B, C, *S) in the model's range.

        Images are encoded one by one, so that memory does not grow with B and results do not depend on the batch.
        """
        self._check(images)
        self._check_is_measured()
        return torch.cat([self.to_latents(image) for image in images.split(1)])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, *S), float32, from latents of ``encode``; decoded one by one."""
        check_images(latents, self.spatial_dims, self.latent_channels, (1,) * self.spatial_dims, "the latent")
        self._check_is_measured()
        return torch.cat([self.to_images(latent) for latent in latents.split(1)])

    def to_latents(self, images: Tensor) -> Tensor:
        """What :meth:`encode` returns, without its checks and for all images at once; this part can be exported."""
        return (self._posterior_mean(images) - self._as_channels(self.latent_mean)) / self.latent_std

    def to_images(self, latents: Tensor) -> Tensor:
        """What :meth:`decode` returns, without its checks and for all latents at once; this part can be exported."""
        raw = latents.float() * self.latent_std + self._as_channels(self.latent_mean)
        return self._clipped(self.autoencoder.decode(raw).float())

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """(C', *S / f) for an image (C, *S); further axes, such as the slices for a 2D network, keep their size."""
        _, *size = image_shape
        factors = (*self.size_divisors, *[1] * (len(size) - self.spatial_dims))
        return (self.latent_channels, *(s // f for s, f in zip(size, factors, strict=True)))

    @torch.no_grad()
    def measure(self, images: Iterable[Tensor]) -> None:
        """Set shift and scale from images (C, *S): the mean of each channel, and the std around these means."""
        count, total = 0, torch.zeros(self.latent_channels, dtype=torch.float64)
        squares = torch.zeros((), dtype=torch.float64)
        for image in images:
            values = self._posterior_mean(image[None].to(self.latent_std.device)).flatten(2)[0].double().cpu()
            count += values.shape[1]
            total += values.sum(dim=1)
            squares += values.square().sum()
        mean = total / count
        std = (squares / (count * self.latent_channels) - mean.square().mean()).clamp(min=0).sqrt()
        if not (torch.isfinite(std) and std > 0):
            raise ConfigError(
                f"the latents' standard deviation is {float(std)}; train again with a lower learning_rate"
            )
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def check_patch_size(self, patch_size: Sequence[int], image_size: Sequence[int]) -> None:
        """Refuse patches that the levels cannot divide, or that have only 1 or 2 voxels per axis at the deepest level.

        So few voxels give little to learn from. In addition, if the first of three axes has size 2, oneDNN computes
        wrong weight gradients in bfloat16 (see :class:`~monai_diffae.networks.blocks.PaddedConv3d`).
        """
        sizes, divisors = list(patch_size), self.size_divisors
        if len(sizes) != self.spatial_dims or len(image_size) != self.spatial_dims:
            raise ConfigError(
                f"patch_size is {sizes}, image_size {list(image_size)}; both must have {self.spatial_dims} sizes"
            )
        if any(size % d or size <= 2 * d for size, d in zip(sizes, divisors, strict=True)):
            raise ConfigError(
                f"patch_size is {sizes}; the autoencoder needs multiples of {shown_divisors(divisors)}, above "
                f"{2 * divisors[0]} so that the deepest level has enough voxels"
            )
        if any(size > whole for size, whole in zip(sizes, image_size, strict=True)):
            raise ConfigError(f"patch_size is {sizes}; it must not be larger than image_size {list(image_size)}")

    def _posterior_mean(self, images: Tensor) -> Tensor:
        mean: Tensor = self.autoencoder.encode(images.to(self.latent_std.dtype))[0]
        return mean.float()

    def _clipped(self, images: Tensor) -> Tensor:
        return images if self.image_range is None else images.clamp(*self.image_range)

    def _as_channels(self, values: Tensor) -> Tensor:
        return values.view(1, -1, *[1] * self.spatial_dims)

    def _check(self, images: Tensor) -> None:
        check_images(images, self.spatial_dims, self.in_channels, self.size_divisors, "the image")

    def _check_is_measured(self) -> None:
        if self.latent_std.isnan():
            raise ConfigError(
                "the scale of the latents is not known; let the training of the first stage reach a validation"
            )
