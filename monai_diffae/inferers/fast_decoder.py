"""A decoder with 1 to 8 network evaluations, which ``monai-diffae distill`` trains from an autoencoder's own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from monai_diffae.diffusion import Denoiser, DiffusionSchedule, StepCallback
from monai_diffae.diffusion.solvers import ddim


@dataclass(frozen=True)
class FastDecoder:
    """A denoiser that leads from x_T to x0 in few DDIM steps, because it was trained for just these steps.

    Attributes:
        unet: (x_t, t, z_sem) -> what the schedule predicts; in evaluation mode.
        levels: the levels of its steps, from x_T down to x0.
    """

    unet: nn.Module
    levels: tuple[int, ...]

    @property
    def steps(self) -> int:
        """The number of steps, with one network evaluation each."""
        return len(self.levels) - 1

    def decode(
        self, denoise: Denoiser, schedule: DiffusionSchedule, x_T: Tensor, callback: StepCallback | None = None
    ) -> Tensor:
        """x_0 (B, C, *S) of x_T; ``denoise`` is :attr:`unet` with its z_sem bound.

        x_0 is clipped to the schedule's range after the last step only: before it, a step does not aim at x_0.
        """
        x_0 = ddim(denoise, schedule, x_T, self.levels, callback=callback)
        return x_0 if schedule.clip_range is None else x_0.clamp(*schedule.clip_range)
