"""Trajectories: an image, or a noise image, at some of the noise levels between x_T and x0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_diffae.errors import ConfigError, quoted
from monai_diffae.inferers.autoencoding import DiffusionAutoencoderInferer


def few_levels(inferer: DiffusionAutoencoderInferer, steps: int) -> list[int]:
    """Choose ``steps`` + 1 of an inferer's levels, from x_T down to x0, at equal distances in its list.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> few_levels(DiffusionAutoencoderInferer(DiffusionSchedule(), steps=20, spacing="linspace"), 2)
        [999, 473, -1]
    """
    levels = inferer.schedule.decoding_levels(inferer.solver_steps, inferer.spacing)
    if type(steps) is not int or not 1 <= steps < len(levels):
        most = len(levels) - 1
        raise ConfigError(
            f"steps is {quoted(steps)}; it must be a whole number between 1 and {most}, the steps of the decoder"
        )
    return [levels[round(i * (len(levels) - 1) / steps)] for i in range(steps + 1)]


def inverted_trajectory(
    inferer: DiffusionAutoencoderInferer, images: Tensor, network: nn.Module, z_sem: Tensor, levels: Sequence[int]
) -> Tensor:
    """The images at ``levels`` on their way up to x_T: (B, L, C, *S), in the order of ``levels``.

    The inferer inverts implicitly, and ``levels`` are some of its levels, chosen by :func:`few_levels`.
    """
    ascending = inferer.schedule.inversion_levels(inferer.solver_steps, inferer.spacing)
    first_stage = inferer.first_stage
    states = {ascending[0]: images if first_stage is None else first_stage.encode(images)}

    def keep(done: int, _: int, x: Tensor) -> None:
        states[ascending[done]] = x

    inferer.invert(images, network, z_sem, keep)
    return torch.stack([states[level] for level in levels], dim=1)


def decoded_trajectory(
    inferer: DiffusionAutoencoderInferer, x_T: Tensor, network: nn.Module, z_sem: Tensor, levels: Sequence[int]
) -> Tensor:
    """Noise at ``levels`` on its way down to an image: (B, L, C, *S), in the order of ``levels``.

    They are some of the inferer's levels, chosen by :func:`few_levels`.
    """
    falling = inferer.schedule.decoding_levels(inferer.solver_steps, inferer.spacing)
    states = {falling[0]: x_T}

    def keep(done: int, _: int, x: Tensor) -> None:
        states[falling[done]] = x

    inferer.decode(z_sem, x_T, network, keep)
    return torch.stack([states[level] for level in levels], dim=1)
