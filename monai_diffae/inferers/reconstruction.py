"""Reconstruction as MONAI inferers, and codes and estimates that do not depend on the other images of a batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.diffusion.steps import StepCallback
from monai_diffae.inferers.autoencoding import DiffusionAutoencoderInferer, ReconstructionMode
from monai_diffae.networks import FirstStage
from monai_diffae.networks.kernels import exact_convolutions
from monai_diffae.policies import check_choice

_MAX_BATCH_SIZE = 16
_VOXELS_PER_BATCH = 2**17


@torch.no_grad()
def encode_exactly(images: Tensor, network: nn.Module, inferer: DiffusionAutoencoderInferer) -> Tensor:
    """z_sem (B, D) in float32, the same to the bit for an image whatever the other images are.

    With another batch size a convolution may use another algorithm, whose results differ in the last bits (4e-7 on a
    CPU). Therefore the batch size depends on the image size alone. A batch that is too small is filled up with copies
    of its last image.

    Args:
        images: (B, C, *S) in the model's range, on the network's device.
        network: the autoencoder, in evaluation mode.
        inferer: the inferer that encodes.
    """
    at_once = images_at_once(images.shape[2:])
    parts = []
    for part in images.split(at_once):
        padded = torch.cat([part, part[-1:].expand(at_once - len(part), *part.shape[1:])])
        with torch.autocast(images.device.type, enabled=False), exact_convolutions():
            parts.append(inferer.encode(padded.float(), network)[: len(part)])
    return torch.cat(parts)


def images_at_once(size: Sequence[int]) -> int:
    """The batch size for images of this size (*S); 1 for large images."""
    return min(_MAX_BATCH_SIZE, max(1, _VOXELS_PER_BATCH // math.prod(size)))


@dataclass(eq=False, repr=False)
class Reconstructor(Inferer):
    """Encodes and decodes images.

    Raises:
        ConfigError: the mode does not exist.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> from monai_diffae.networks import build_autoencoder
        >>> network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
        >>> reconstruct = Reconstructor(DiffusionAutoencoderInferer(DiffusionSchedule(), steps=2), mode="z_sem")
        >>> reconstruct(torch.zeros(2, 1, 16, 16), network.eval(), ids=["case-1", "case-2"]).shape
        torch.Size([2, 1, 16, 16])
    """

    inferer: DiffusionAutoencoderInferer  #: encodes, inverts and decodes
    #: ``x_T`` decodes with each image's own inverted x_T (near-exact); ``z_sem`` with Gaussian noise
    mode: ReconstructionMode = "x_T"
    seed: int = 0  #: of that noise, which is a function of the seed, the case's id and the number of the draw
    draws: int = 1  #: in mode ``z_sem``, the mean over this many decodings from different noise
    #: in mode ``x_T``, most network evaluations for refining the inversion of one image; see
    #: :meth:`DiffusionAutoencoderInferer.round_trip`
    max_evaluations: int | None = None

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ReconstructionMode)

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        inputs: Tensor,
        network: nn.Module,
        condition: Tensor | None = None,
        ids: Sequence[str] | None = None,
        **_: Any,
    ) -> Tensor:
        """Reconstruct images.

        Args:
            inputs: images (B, C, *S) in the model's range.
            network: the trained autoencoder, in evaluation mode.
            condition: the images that the encoder sees; None: ``inputs``.
            ids: the cases' ids, for the noise; None: all images get the same noise.

        Returns:
            The reconstructions (B, C, *S).
        """
        z_sem = encode_exactly(inputs if condition is None else condition, network, self.inferer)
        return self.decode(inputs, network, z_sem, ids)[0]

    @torch.no_grad()
    def decode(
        self,
        images: Tensor,
        network: nn.Module,
        z_sem: Tensor,
        ids: Sequence[str] | None = None,
        callback: StepCallback | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode z_sem (B, D) of images; the other arguments are those of a call.

        In mode ``x_T``, the callback is that of :meth:`DiffusionAutoencoderInferer.round_trip`.

        Returns:
            The reconstructions (B, C, *S), and the x_T that they were decoded with; of several draws, the first.
        """
        if self.mode == "x_T":
            x_T, decoded = self.inferer.round_trip(images, network, z_sem, callback, self.max_evaluations)
            return decoded, x_T
        x_T = self.noise(images, ids)
        return self.decode_draws(z_sem, network, x_T).mean(dim=1), x_T[:, 0]

    def noise(self, images: Tensor, ids: Sequence[str] | None = None) -> Tensor:
        """The x_T (B, draws, C, *S) of images (B, C', *S) in mode ``z_sem``; the first draw is that of a single one."""
        indices = [0] if ids is None else [seed_of(name) for name in ids]
        shape = self.inferer.x_T_shape(images.shape[1:])
        rows = [[index, *(seed_of(index, "draw", draw) for draw in range(1, self.draws))] for index in indices]
        noise = torch.stack([image_noise(shape, self.seed, row) for row in rows])
        return noise.to(images).expand(len(images), self.draws, *shape)

    @torch.no_grad()
    def decode_draws(self, z_sem: Tensor, network: nn.Module, x_T: Tensor) -> Tensor:
        """Decode each z_sem (B, D) with each of its x_T (B, draws, C, *S): images (B, draws, C', *S)."""
        draws = x_T.shape[1]
        decoded = self.inferer.decode(z_sem.repeat_interleave(draws, dim=0), network, x_T.flatten(0, 1))
        return decoded.unflatten(0, (len(z_sem), draws))


class FirstStageInferer(Inferer):
    """Encodes images and decodes the mean of the posterior; for evaluation."""

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: FirstStage, **_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The reconstruction (B, C, *S) of images, and the posterior's mean and sigma (B, C', *S / f)."""
        mean, sigma = network.autoencoder.encode(inputs)
        return network.autoencoder.decode(mean), mean, sigma


class FirstStageReconstructor(Inferer):
    """Returns the reconstruction only; for the ``SupervisedEvaluator`` of a bundle."""

    def __call__(self, inputs: Tensor, network: FirstStage, **_: Any) -> Tensor:  # type: ignore[override]
        """The reconstruction (B, C, *S) of images."""
        return FirstStageInferer()(inputs, network)[0]


@torch.no_grad()
def estimate_from_noised(
    images: Tensor,
    network: nn.Module,
    z_sem: Tensor,
    inferer: DiffusionAutoencoderInferer,
    *,
    noise_levels: Sequence[float] = (0.3,),
    draws: int = 8,
    seed: int = 0,
) -> Tensor:
    """Estimate each image from noisy versions of itself and its z_sem.

    The network's x0 at one noise level is the mean of all images that fit the noisy image and z_sem. So one evaluation
    gives what the mean over many sampled reconstructions would approach. Conditioned DDPMs (Behrendt et al., arXiv
    2312.04215) and ANDi (Frotscher et al., arXiv 2312.01904) use it in place of AnoDDPM's sampling (Wyatt et al. 2022).

    An image is processed on its own, so its estimate is the same to the bit whatever the other images are.

    Args:
        images: (N, C, *S) in the model's range, on the network's device.
        network: the autoencoder, in evaluation mode.
        z_sem: (N, D).
        inferer: the inferer with the schedule and, in latent mode, the first stage.
        noise_levels: the share of all timesteps, above 0 and up to 1, at which images are noised; 1 keeps z_sem only.
        draws: noises per level. They are functions of the seed, the level and the draw, and equal for all images.
        seed: random seed.

    Returns:
        The means over all draws, (N, C, *S) in float32.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> from monai_diffae.networks import build_autoencoder
        >>> network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
        >>> images, inferer = torch.zeros(2, 1, 16, 16), DiffusionAutoencoderInferer(DiffusionSchedule())
        >>> estimate_from_noised(images, network, inferer.encode(images, network.eval()), inferer, draws=2).shape
        torch.Size([2, 1, 16, 16])
    """
    schedule, first_stage = inferer.schedule, inferer.first_stage
    dtype = next(network.parameters()).dtype
    shape = inferer.x_T_shape(images.shape[1:])
    timesteps = [max(round(level * schedule.num_train_timesteps) - 1, 0) for level in noise_levels]
    noises = {t: image_noise(shape, seed_of(seed, t), list(range(draws))).to(images.device) for t in timesteps}

    def estimate(image: Tensor, code: Tensor) -> Tensor:
        x_0 = image if first_stage is None else first_stage.encode(image)
        total = torch.zeros_like(image, dtype=torch.float32)
        for t, noise in noises.items():
            for eps in noise.split(images_at_once(shape[1:])):
                timesteps, codes = torch.full((len(eps),), t, device=eps.device), code.to(dtype).expand(len(eps), -1)
                x_t = schedule.q_sample(x_0.expand_as(eps), eps, timesteps)
                output = network(x_t.to(dtype), timesteps, codes)
                estimates, _ = schedule.to_x0_eps(output, x_t, timesteps, inferer.clip_range)
                decoded = estimates if first_stage is None else first_stage.decode(estimates)
                total += decoded.sum(dim=0, keepdim=True)
        return total / (draws * len(noises))

    return torch.cat([estimate(image, code) for image, code in zip(images.split(1), z_sem.split(1), strict=True)])
