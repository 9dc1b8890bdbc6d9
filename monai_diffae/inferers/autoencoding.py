"""What a diffusion autoencoder does with images: encode, invert, decode, reconstruct; and its training forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from monai_diffae.diffusion import DiffusionSchedule, ddim, ddim_invert
from monai_diffae.diffusion.solvers import StepCallback

ReconstructionMode = Literal["x_T", "z_sem"]


class DiffusionAutoencoderInferer(Inferer):
    """Encoding, inversion and decoding with one schedule; called itself, it is the training forward.

    Args:
        schedule: the noise schedule that the network is trained with.
        num_steps: network evaluations for decoding.
        invert_steps: network evaluations for inversion; None: as many as for decoding. Where the two differ, the
            levels differ too, which costs accuracy.
        clip: clip x0 to the schedule's ``clip_range`` at every step.

    Example:
        >>> from monai_diffae.networks import DiffusionAutoencoder
        >>> network = DiffusionAutoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
        >>> inferer = DiffusionAutoencoderInferer(DiffusionSchedule(), num_steps=5)
        >>> images = torch.rand(2, 1, 16, 16) * 2 - 1
        >>> inferer.reconstruct(images, network.eval(), mode="x_T").shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        schedule: DiffusionSchedule,
        num_steps: int = 100,
        invert_steps: int | None = None,
        clip: bool = True,
    ) -> None:
        self.schedule = schedule
        self.num_steps = num_steps
        self.invert_steps = invert_steps or num_steps
        self.clip_range = schedule.clip_range if clip else None

    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: nn.Module, noise: Tensor, timesteps: Tensor, condition: Tensor, **_: Any
    ) -> Tensor:
        """The training forward (B, C, *S): the network's output for q(x_t | inputs).

        Args:
            inputs: clean images x0 (B, C, *S) in the model's range.
            network: a :class:`~monai_diffae.networks.DiffusionAutoencoder`.
            noise: eps (B, C, *S).
            timesteps: t (B,).
            condition: z_sem (B, D), or the clean images (B, C', *S) to encode.
        """
        x_t = self.schedule.q_sample(inputs, noise, timesteps)
        output: Tensor = network(x_t, timesteps, condition)
        return output

    @torch.no_grad()
    def encode(self, images: Tensor, network: nn.Module) -> Tensor:
        """z_sem (B, D), float32, of images (B, C, *S)."""
        z_sem: Tensor = network.encode(images)  # type: ignore[operator]
        return z_sem.float()

    @torch.no_grad()
    def invert(
        self, images: Tensor, network: nn.Module, z_sem: Tensor | None = None, callback: StepCallback | None = None
    ) -> Tensor:
        """The stochastic code x_T (B, C, *S) of images, given their z_sem (encoded here when None)."""
        z_sem = self.encode(images, network) if z_sem is None else z_sem
        return ddim_invert(
            lambda x, t: network(x, t, z_sem),
            self.schedule,
            images,
            self._timesteps(self.invert_steps),
            clip_range=self.clip_range,
            callback=callback,
        )

    @torch.no_grad()
    def decode(
        self,
        z_sem: Tensor,
        x_T: Tensor,
        network: nn.Module,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Images (B, C, *S) from both codes."""
        return ddim(
            lambda x, t: network(x, t, z_sem),
            self.schedule,
            x_T,
            self._timesteps(self.num_steps),
            clip_range=self.clip_range,
            callback=callback,
        )

    def reconstruct(
        self,
        images: Tensor,
        network: nn.Module,
        mode: ReconstructionMode = "x_T",
        x_T: Tensor | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Images (B, C, *S) encoded and decoded again.

        Args:
            images: (B, C, *S) in the model's range.
            network: the trained autoencoder.
            mode: ``x_T``: with each image's own inverted x_T, near-exact; ``z_sem``: from z_sem alone, with the
                noise given as ``x_T`` (drawn here when None), the same semantics with other details.
            x_T: the stochastic codes for mode ``z_sem``.
            callback: called after each step of inversion and of decoding.
        """
        z_sem = self.encode(images, network)
        if mode == "x_T":
            x_T = self.invert(images, network, z_sem, callback)
        elif x_T is None:
            x_T = torch.randn_like(images)
        return self.decode(z_sem, x_T, network, callback)

    def _timesteps(self, num_steps: int) -> Sequence[int]:
        return self.schedule.inference_timesteps(num_steps)
