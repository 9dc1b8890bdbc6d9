"""From a batch of the loader to the inputs of a training step: x0, target, noise, timesteps, condition."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines.utils import DiffusionPrepareBatch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor

from monai_diffae.diffusion import as_schedule
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.engines.batches import StepDraws
from monai_diffae.engines.precision import send
from monai_diffae.networks import FirstStage

_SEED = 0  # of validations, which can be compared


class AutoencoderPrepareBatch(DiffusionPrepareBatch):
    """MONAI's prepare_batch for diffusion, with the schedule's timesteps and target, and the encoder's image.

    Noise and timesteps come from the :class:`StepDraws` that our trainer adds to the batch as ``draws``, so that they
    do not depend on the number of processes; without them, from torch's global generator.

    Args:
        schedule: samples the timesteps and computes the target.
        image_key: the image that the decoder reconstructs.
        encoder_key: the image that the encoder sees; None: the same one. It may be another augmented view, channel or
            modality of the case, which the transforms store under this key.
        first_stage: encodes both images to latents, which then replace them; None: the network works on images.
    """

    def __init__(
        self,
        schedule: Scheduler,
        image_key: str = "image",
        encoder_key: str | None = None,
        first_stage: FirstStage | None = None,
    ) -> None:
        self.schedule, self.first_stage = as_schedule(schedule), first_stage
        super().__init__(num_train_timesteps=self.schedule.num_train_timesteps)
        self.image_key, self.encoder_key = image_key, encoder_key or image_key
        self._draws: StepDraws | None = None

    def get_noise(self, images: Tensor) -> Tensor:
        """Noise (B, C, *S) for images of this shape."""
        if self._draws is None:
            return super().get_noise(images)
        return self._draws.noise(images.shape[1:], images.device).to(images.dtype)

    def get_timesteps(self, images: Tensor) -> Tensor:
        """Timesteps (B,), sampled as the schedule's ``timestep_sampling`` says."""
        if self._draws is None:
            return self.schedule.sample_timesteps(images.shape[0])
        return self._draws.timesteps(self.schedule)

    def get_target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The output that the network is trained to give: eps, x0 or v."""
        return self.schedule.target(images, noise, timesteps)

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple[Any, ...], dict[str, Tensor]]:
        """(x0, target, (), {noise, timesteps, condition}) on ``device``."""

        def clean_images(key: str) -> Tensor:
            images: Tensor = batchdata[key].to(device, non_blocking=non_blocking, **kwargs)
            images = images.as_subclass(Tensor)  # of a MetaTensor, which losses and checkpoints would become, too
            return images if self.first_stage is None else self.first_stage.encode(images)

        self._draws = batchdata.get("draws")
        images = clean_images(self.image_key)
        noise = self.get_noise(images)
        timesteps = send(self.get_timesteps(images), images.device)
        target = self.get_target(images, noise, timesteps)
        condition = images if self.encoder_key == self.image_key else clean_images(self.encoder_key)
        return images, target, (), {"noise": noise, "timesteps": timesteps, "condition": condition}


class FixedPrepareBatch(AutoencoderPrepareBatch):
    """Like :class:`AutoencoderPrepareBatch`, with timesteps and noise as functions of the image's index.

    Validations can thus be compared. Timesteps are stratified over [0, T): each of ``num_images`` gets the middle of
    one of as many equal parts, in a random order.
    """

    def __init__(self, schedule: Scheduler, num_images: int, **kwargs: Any) -> None:
        super().__init__(schedule, **kwargs)
        order = torch.randperm(num_images, generator=torch.Generator().manual_seed(_SEED))
        self.timesteps = self.schedule.stratified_timesteps(num_images)[order]
        self._indices: list[int] = []

    def get_noise(self, images: Tensor) -> Tensor:
        """Noise (B, C, *S), a function of the image index."""
        return send(image_noise(tuple(images.shape[1:]), _SEED, self._indices), images.device).to(images.dtype)

    def get_timesteps(self, images: Tensor) -> Tensor:
        """The stratified timesteps (B,) of these images."""
        return self.timesteps[torch.tensor(self._indices)]

    def __call__(self, batchdata: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in training; the batch's ``index`` has the indices of its images."""
        self._indices = [int(i) for i in batchdata["index"]]
        return super().__call__(batchdata, *args, **kwargs)
