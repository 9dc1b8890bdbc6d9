"""z_sem from nothing: what a latent DDIM does, in training and after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor

from monai_diffae.diffusion import SOLVERS, DiffusionSchedule, SpacingName, StepCallback
from monai_diffae.errors import ConfigError
from monai_diffae.networks import LatentMLP

# Sample i is always computed with the same neighbours at the same place of a batch of this size, as the last bits of
# a matrix product depend on its shape.
_AT_ONCE = 64


class LatentInferer(Inferer):
    """Sampling of z_sem with a latent DDIM; called itself, it is the training forward.

    Diff-AE, section 4.5 and appendix A (Preechakul et al., CVPR 2022): a second diffusion model, on normalised z_sem.
    Nothing is clipped, as normalised z_sem has no bounds. The defaults' samples lie .003 to .009 (root mean square, of
    normalised z_sem) from those of DDIM with all 1000 steps; 20 steps of DDIM lie .05 to .09 from them.

    Args:
        schedule: the noise schedule that the network is trained with.
        solver: ``adams``, ``dpmpp_2m``, ``unipc``, ``heun``, ``ddim`` or ``euler``.
        steps: steps of the solver, from noise to z_sem.
        spacing: the levels that a run visits; None: the schedule's.

    Raises:
        ConfigError: an unknown name, or a number of steps that the schedule does not have.

    Example:
        >>> from monai_diffae.networks import LatentMLP
        >>> network = LatentMLP(z_channels=4, hidden_channels=8, num_layers=2).eval()
        >>> network.set_statistics(torch.zeros(4), torch.ones(4))
        >>> inferer = LatentInferer(DiffusionSchedule(prediction="eps"), steps=3)
        >>> z_sem = inferer.sample(network, 5, seed=1)
        >>> z_sem.shape, torch.equal(inferer.sample(network, 2, seed=1, start=3), z_sem[3:])
        (torch.Size([5, 4]), True)
    """

    def __init__(
        self,
        schedule: DiffusionSchedule,
        solver: str = "adams",
        steps: int = 20,
        spacing: SpacingName | None = None,
    ) -> None:
        if not isinstance(schedule, DiffusionSchedule):
            raise ConfigError(f"schedule is {schedule!r}; it must be a DiffusionSchedule")
        if solver not in SOLVERS:
            raise ConfigError(f"solver is {solver!r}; choose one of: {', '.join(SOLVERS)}")
        self.schedule = schedule
        self.solver = SOLVERS[solver]
        self.steps = steps
        self.levels = schedule.decoding_levels(steps, spacing)

    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: torch.nn.Module, noise: Tensor, timesteps: Tensor, **_: Any
    ) -> Tensor:
        """The training forward (B, D): the network's output for q(z_t | inputs).

        Args:
            inputs: normalised z_sem (B, D).
            network: a :class:`~monai_diffae.networks.LatentMLP`.
            noise: eps (B, D).
            timesteps: t (B,).
        """
        output: Tensor = network(self.schedule.q_sample(inputs, noise, timesteps), timesteps)
        return output

    @torch.no_grad()
    def sample(
        self,
        network: LatentMLP,
        num_samples: int,
        seed: int = 0,
        start: int = 0,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """New z_sem (N, D), float32, on the network's device, as the autoencoder's decoder takes them.

        Sample i is a function of the weights and (seed, start + i) alone, to the bit.

        Args:
            network: the trained latent network, in evaluation mode, with the statistics of its training set.
            num_samples: N, at least 1.
            seed: of the noise that they come from.
            start: place of the first one in the endless row of this seed's samples.
            callback: called after each step of each 64 samples, with what is normalised.

        Raises:
            ConfigError: a number that is none, a network in training mode or without statistics.
        """
        for name, value, least in (("num_samples", num_samples, 1), ("seed", seed, 0), ("start", start, 0)):
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number, at least {least}")
        if network.training:
            raise ConfigError("the latent network is in training mode; call network.eval()")
        weights = network.head.weight
        stop = start + num_samples
        parts = []
        for first in range(start - start % _AT_ONCE, stop, _AT_ONCE):
            z_T = _noise(network.z_channels, seed, first).to(weights)
            z = self.solver(network, self.schedule, z_T, self.levels, callback=callback)
            parts.append(network.denormalise(z)[max(start - first, 0) : stop - first])
        return torch.cat(parts)


def _noise(z_channels: int, seed: int, first: int) -> Tensor:
    """z_T (64, D) of the samples from ``first`` on, one generator a sample."""
    rows = [np.random.default_rng([seed, i]) for i in range(first, first + _AT_ONCE)]
    return torch.from_numpy(np.stack([row.standard_normal(z_channels, np.float32) for row in rows]))
