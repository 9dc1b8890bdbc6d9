"""A first stage: an autoencoder between large images and the small latents that a diffusion model works in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from monai_diffae.errors import ConfigError
from monai_diffae.networks.blocks import check_images, shown_divisors


class FirstStage(nn.Module):
    """MONAI's ``AutoencoderKL`` with the scale of its latents, as latent diffusion needs it.

    Latent diffusion, Rombach et al., CVPR 2022 (arXiv 2112.10752). What ``encode`` gives has mean 0 in each channel
    and standard deviation 1 over all of them: :meth:`measure` finds out by how much to shift and scale, and both are
    saved with the weights. One scale serves all channels, so that those that hold little stay small. An image's
    latents are the mean of its posterior: nothing is drawn.

    Args:
        autoencoder: ``monai.networks.nets.AutoencoderKL``; each level but the first is half as large along each axis.
        image_range: decoded images are clipped to it; None: they are not. Latents never are.

    Attributes:
        latent_channels: of the latents.
        size_divisors: what each spatial size of an image must be a multiple of, and by how much latents are smaller.

    Raises:
        ConfigError: another kind of network; in ``encode`` and ``decode``, a wrong shape, or an unknown scale.

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
        if not isinstance(autoencoder, AutoencoderKL):
            raise ConfigError(f"autoencoder is a {type(autoencoder).__name__}; it must be MONAI's AutoencoderKL")
        self.autoencoder = autoencoder
        self.image_range = image_range
        self.latent_channels = int(autoencoder.latent_channels)
        encoder = autoencoder.encoder
        self.spatial_dims, self.in_channels = int(encoder.spatial_dims), int(encoder.in_channels)  # type: ignore[arg-type]
        num_levels = len(encoder.channels)  # type: ignore[arg-type]
        self.size_divisors = (2 ** (num_levels - 1),) * self.spatial_dims
        self.register_buffer("latent_mean", torch.full((self.latent_channels,), math.nan))
        self.register_buffer("latent_std", torch.tensor(math.nan))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The training forward of (B, C, *S): reconstruction of a drawn latent, and the posterior's mean and sigma."""
        self._check(images)
        output: tuple[Tensor, Tensor, Tensor] = self.autoencoder(images)
        return output

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The latents (B, C', *S / f), float32, of images (B, C, *S) in the model's range.

        One image at a time: the memory does not grow with B, and no image's latents depend on the others.
        """
        self._check(images)
        self._check_is_measured()
        means = torch.cat([self._posterior_mean(image) for image in images.split(1)])
        return (means - self._as_channels(self.latent_mean)) / self.latent_std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, *S), float32, from latents as ``encode`` gives them; one at a time."""
        check_images(latents, self.spatial_dims, self.latent_channels, (1,) * self.spatial_dims, "the latent")
        self._check_is_measured()
        raw = latents.float() * self.latent_std + self._as_channels(self.latent_mean)
        images = torch.cat([self.autoencoder.decode(latent).float() for latent in raw.split(1)])
        return images if self.image_range is None else images.clamp(*self.image_range)

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """(C', *S / f) of an image (C, *S); axes beyond the network's, the slices of a 2D one, stay as they are."""
        _, *size = image_shape
        factors = (*self.size_divisors, *[1] * (len(size) - self.spatial_dims))
        return (self.latent_channels, *(s // f for s, f in zip(size, factors, strict=True)))

    @torch.no_grad()
    def measure(self, images: Iterable[Tensor]) -> None:
        """Set the scale: each channel's mean over images (C, *S), and the standard deviation around these means.

        Raises:
            ConfigError: the latents do not differ, or are not finite.
        """
        count, total, squares = (
            0,
            torch.zeros(self.latent_channels, dtype=torch.float64),
            torch.zeros((), dtype=torch.float64),
        )
        for image in images:
            values = self._posterior_mean(image[None].to(self.latent_std.device)).flatten(2)[0].double().cpu()
            count += values.shape[1]
            total += values.sum(dim=1)
            squares += values.square().sum()
        mean = total / count
        std = (squares / (count * self.latent_channels) - mean.square().mean()).clamp(min=0).sqrt()
        if not (torch.isfinite(std) and std > 0):
            raise ConfigError(f"the latents' standard deviation is {float(std)}; train anew with a lower learning_rate")
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def check_patch_size(self, patch_size: Sequence[int], image_size: Sequence[int]) -> None:
        """Refuse patches that the levels cannot divide, or that the deepest one sees as 2 voxels or fewer.

        From so few there is little to learn; and where the first of three axes has 2, oneDNN's gradients of weights in
        bfloat16 are wrong (see :class:`~monai_diffae.networks.blocks.SameConv3d`).

        Raises:
            ConfigError: it is so, or a patch is larger than the image.
        """
        shown, divisors = list(patch_size), self.size_divisors
        if len(shown) != self.spatial_dims or len(image_size) != self.spatial_dims:
            raise ConfigError(
                f"patch_size is {shown}, image_size {list(image_size)}; both must have {self.spatial_dims} sizes"
            )
        if any(size % d for size, d in zip(shown, divisors, strict=True)):
            raise ConfigError(f"patch_size is {shown}; the autoencoder needs multiples of {shown_divisors(divisors)}")
        if any(size <= 2 * d for size, d in zip(shown, divisors, strict=True)):
            raise ConfigError(
                f"patch_size is {shown}; each must be above {2 * divisors[0]}, or the deepest level has too few voxels"
            )
        if any(size > whole for size, whole in zip(shown, image_size, strict=True)):
            raise ConfigError(f"patch_size is {shown}; it must not be larger than image_size {list(image_size)}")

    def _posterior_mean(self, images: Tensor) -> Tensor:
        mean: Tensor = self.autoencoder.encode(images.to(self.latent_std.dtype))[0]
        return mean.float()

    def _as_channels(self, values: Tensor) -> Tensor:
        return values.view(1, -1, *[1] * self.spatial_dims)

    def _check(self, images: Tensor) -> None:
        check_images(images, self.spatial_dims, self.in_channels, self.size_divisors, "the image")

    def _check_is_measured(self) -> None:
        if self.latent_std.isnan():
            raise ConfigError(
                "the scale of the latents is not known; let the first stage's training reach a validation"
            )
