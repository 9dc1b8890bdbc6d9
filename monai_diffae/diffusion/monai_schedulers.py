"""MONAI's schedulers: their noise levels for our solvers, inversion and training, and their own steps."""

import functools
import inspect
import logging
import zlib
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler, RFlowScheduler
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor

from monai_diffae.diffusion.schedule import RECTIFIED_FLOW, DiffusionSchedule, Prediction
from monai_diffae.diffusion.steps import Denoiser, StepCallback, integrate
from monai_diffae.errors import ConfigError
from monai_diffae.policies import Range

logger = logging.getLogger(__name__)

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def as_schedule(scheduler: Scheduler) -> DiffusionSchedule:
    """A schedule with the noise levels, prediction and clipping of one of MONAI's schedulers; ours as it is.

    Args:
        scheduler: ``DDPMScheduler``, ``DDIMScheduler``, ``PNDMScheduler`` or ``RFlowScheduler`` of
            ``monai.networks.schedulers``.

    Raises:
        ConfigError: it is another object, predicts a variance, or changes its timesteps with the size of the images.

    Example:
        >>> schedule = as_schedule(DDIMScheduler(1000, prediction_type="v_prediction"))
        >>> schedule.prediction, schedule.clip_range
        ('v', (-1.0, 1.0))
    """
    if isinstance(scheduler, DiffusionSchedule):
        return scheduler
    if not isinstance(scheduler, (DDPMScheduler, DDIMScheduler, PNDMScheduler, RFlowScheduler)):
        kind = type(scheduler).__name__
        raise ConfigError(
            f"diffusion, or schedule: a {kind} is none; use a DiffusionSchedule or MONAI's DDPM, DDIM, PNDM or RFlow"
        )
    values = vars(scheduler)
    clip_range = tuple(values["clip_sample_values"]) if values.get("clip_sample") else None
    return _converted(scheduler, values["prediction_type"], clip_range)


@functools.lru_cache(maxsize=8)  # trainer, inferer and others share it, and with it the device
def _converted(scheduler: Scheduler, prediction_type: str, clip_range: Range | None) -> DiffusionSchedule:
    return MonaiSchedule(scheduler, _PREDICTIONS[prediction_type], clip_range)


class MonaiSchedule(DiffusionSchedule):
    """What :func:`as_schedule` makes of one of MONAI's schedulers.

    ``RFlowScheduler`` has sigma_t = t / T, and its networks predict x0 - eps, the opposite of our velocity. At t = 0,
    where it adds no noise, there is a quarter of a level's noise, as log-SNR would be infinite.
    """

    def __init__(self, scheduler: Any, prediction: Prediction, clip_range: Range | None) -> None:
        name, is_flow = type(scheduler).__name__, isinstance(scheduler, RFlowScheduler)
        if str(getattr(scheduler, "variance_type", "")).startswith("learned"):
            raise ConfigError(f"{name}: variance_type is learned, which is not supported; use fixed_small")
        if getattr(scheduler, "use_timestep_transform", False):
            raise ConfigError(f"{name}: use_timestep_transform is not supported; use DiffusionSchedule(timestep_shift)")
        if not getattr(scheduler, "use_discrete_timesteps", True):
            raise ConfigError(f"{name}: use_discrete_timesteps=false is not supported; omit it")
        values = vars(scheduler)
        if "distribution" in values:
            normal = values["distribution"].base_dist.base_dist
            if (float(normal.loc), float(normal.scale)) != (0, 1):
                raise ConfigError(f"{name}: loc and scale are not supported; use 0 and 1")
        is_normal = values.get("sample_method") == "logit-normal"
        super().__init__(
            scheduler.num_train_timesteps,
            RECTIFIED_FLOW if is_flow else "linear_beta",
            prediction,
            timestep_sampling="logit_normal" if is_normal else "uniform",
            clip_range=clip_range,
        )
        self._own = [scheduler]  # in a list, as RFlowScheduler is no complete torch module
        self._sign = -1 if is_flow else 1
        if is_flow:
            s = torch.arange(self.num_train_timesteps, dtype=torch.float64).clamp(min=0.25) / self.num_train_timesteps
            self._set_levels(1 - s, s)
        else:
            self.schedule = name
            alpha_bar = torch.cumprod(1 - scheduler.betas.double(), dim=0)
            self._set_levels(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
        self.set_timesteps(self.num_train_timesteps)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The training target for x_t: eps, x0 or v (B, C, *S), with MONAI's sign."""
        return self._sign * super().target(x0, eps, t)

    def to_x0_eps(
        self, output: Tensor, x_t: Tensor, t: Tensor, clip_range: Range | None = None
    ) -> tuple[Tensor, Tensor]:
        """Convert the network's output to (x0, eps), in float32 or better."""
        return super().to_x0_eps(self._sign * output, x_t, t, clip_range)

    def own_steps(self, denoise: Denoiser, x: Tensor, steps: int, clip: bool, callback: StepCallback | None) -> Tensor:
        """Move x (B, C, *S) from noise to x0 by MONAI's own ``step``, at the timesteps of its ``set_timesteps``.

        Noise that a step adds is a function of the image's x_T.
        """
        own = self._at(steps)
        own.clip_sample = clip
        names = inspect.signature(own.step).parameters
        x = x.float()
        seeds = [zlib.crc32(image.cpu().numpy().tobytes()) for image in x]
        generators = [torch.Generator(x.device).manual_seed(seed) for seed in seeds]

        def step(x: Tensor, t: int, t_next: int) -> Tensor:
            output = denoise(x, torch.full((len(x),), t, device=x.device)).to(x.dtype)
            if "next_timestep" in names:
                return own.step(output, t, x, t_next)[0]
            if "generator" not in names:  # PNDM, which keeps earlier outputs
                return own.step(output, t, x)[0]
            each = zip(output.split(1), x.split(1), generators, strict=True)
            return torch.cat([own.step(out, t, image, generator=generator)[0] for out, image, generator in each])

        return integrate(x, [*own.timesteps.tolist(), 0], step, callback)

    def warn_of_own_steps(self, steps: int) -> None:
        """Log a warning if MONAI's ``step`` ends at other levels than those of its timesteps, as in MONAI 1.6.1."""
        own = self._at(steps)
        total = self.num_train_timesteps
        move = {"DDIMScheduler": total // steps, "DDPMScheduler": 1}.get(type(own).__name__)
        distances = {t - t_next for t, t_next in pairwise(own.timesteps.tolist())}
        if move is not None and distances - {move}:
            logger.warning(
                "%s: its %d timesteps are up to %d apart, but its step moves by %d, so the network is told wrong noise "
                "levels; use another solver",
                type(own).__name__,
                steps,
                max(distances),
                move,
            )

    def _at(self, steps: int) -> Any:
        """A copy of MONAI's scheduler with its timesteps for a run; PNDM's remembers what it has seen."""
        own: Any = deepcopy(self._own[0])
        if steps < 4 and not getattr(own, "skip_prk_steps", True):
            raise ConfigError(f"steps is {steps}; PNDMScheduler needs at least 4, or skip_prk_steps=true")
        own.set_timesteps(steps)
        return own
