"""From a batch of the loader to what the training step needs: x0, target, noise, timesteps, condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines.utils import DiffusionPrepareBatch
from torch import Tensor

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.networks import FirstStage


class AutoencoderPrepareBatch(DiffusionPrepareBatch):
    """MONAI's prepare_batch for diffusion, with the schedule's timesteps and target and the encoder's image.

    Args:
        schedule: draws timesteps and says what the target is.
        image_key: the image that the decoder draws.
        encoder_key: the image that the encoder sees: the same one by default, or another augmented view, channel
            or modality of the case that the transforms put under another key.
        first_stage: turns both images into latents, of which everything else is then made.
    """

    def __init__(
        self,
        schedule: DiffusionSchedule,
        image_key: str = "image",
        encoder_key: str | None = None,
        first_stage: FirstStage | None = None,
    ) -> None:
        super().__init__(num_train_timesteps=schedule.num_train_timesteps)
        self.schedule = schedule
        self.image_key = image_key
        self.encoder_key = encoder_key or image_key
        self.first_stage = first_stage

    def get_timesteps(self, images: Tensor) -> Tensor:
        """Timesteps (B,) as the schedule's ``timestep_sampling`` draws them."""
        return self.schedule.sample_timesteps(images.shape[0])

    def get_target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should give: eps, x0 or v."""
        return self.schedule.target(images, noise, timesteps)

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple[Any, ...], dict[str, Tensor]]:
        """(x0, target, (), {noise, timesteps, condition}) on ``device``."""

        def x0_of(key: str) -> Tensor:
            images = batchdata[key].to(device, non_blocking=non_blocking, **kwargs)
            return images if self.first_stage is None else self.first_stage.encode(images)

        images = x0_of(self.image_key)
        noise = self.get_noise(images)
        timesteps = self.get_timesteps(images).to(images.device)
        target = self.get_target(images, noise, timesteps)
        condition = images if self.encoder_key == self.image_key else x0_of(self.encoder_key)
        return images, target, (), {"noise": noise, "timesteps": timesteps, "condition": condition}


class FixedPrepareBatch(AutoencoderPrepareBatch):
    """The same for validation: timesteps and noise are functions of the image's index, so two validations compare.

    Timesteps are stratified over [0, T): image i of n gets the middle of one of n equal parts, in an order that
    mixes low and high levels.

    Args:
        schedule: as in training.
        num_images: n, the number of validation images.
        seed: of the noise.
        image_key: the image that the decoder draws.
        encoder_key: the image that the encoder sees.
        first_stage: as in training.
    """

    def __init__(
        self,
        schedule: DiffusionSchedule,
        num_images: int,
        seed: int = 0,
        image_key: str = "image",
        encoder_key: str | None = None,
        first_stage: FirstStage | None = None,
    ) -> None:
        super().__init__(schedule, image_key, encoder_key, first_stage)
        order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
        self.timesteps = schedule.stratified_timesteps(num_images)[order]
        self.seed = seed
        self._indices: list[int] = []

    def get_noise(self, images: Tensor) -> Tensor:
        """Noise (B, C, *S), a function of (seed, image index)."""
        return image_noise(tuple(images.shape[1:]), self.seed, self._indices).to(images.device, images.dtype)

    def get_timesteps(self, images: Tensor) -> Tensor:
        """The stratified timesteps (B,) of these images."""
        return self.timesteps[torch.tensor(self._indices)]

    def __call__(self, batchdata: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """As in training; the batch's ``index`` says which images these are."""
        self._indices = [int(i) for i in batchdata["index"]]
        return super().__call__(batchdata, *args, **kwargs)
