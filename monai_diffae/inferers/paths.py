"""Paths between codes, and between an image and its noise."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from monai_diffae.diffusion import StepCallback
from monai_diffae.errors import ConfigError, quoted
from monai_diffae.inferers.autoencoding import DiffusionAutoencoderInferer


def lerp(first: Tensor, second: Tensor, weights: Sequence[float]) -> Tensor:
    """Points (W, *) on the straight line between ``first`` (1, *) and ``second`` (1, *), one per weight."""
    w = _column(weights, first)
    return (1 - w) * first + w * second


def slerp(first: Tensor, second: Tensor, weights: Sequence[float]) -> Tensor:
    """Points (W, *) on the arc between ``first`` (1, *) and ``second`` (1, *), one per weight (Shoemake 1985).

    As in the paper's interpolation of x_T (section 4.2), each code is treated as one vector. Noise in many dimensions
    lies close to a sphere; points on a straight line would leave the sphere and decode to blurred images. Between
    parallel codes, the arc is the straight line.
    """
    a, b = first.double().flatten(), second.double().flatten()
    cosine = (a @ b / (a.norm() * b.norm())).clamp(-1, 1)
    if not cosine > 1e-12 - 1:  # written so that NaN is refused, too
        raise ConfigError("there is no arc between codes that are opposite, zero or not finite; choose other codes")
    angle = torch.arccos(cosine)
    if angle.sin() < 1e-6:
        return lerp(first, second, weights)
    w = _column(weights, first.double())
    arc = ((1 - w) * angle).sin() * first.double() + (w * angle).sin() * second.double()
    return (arc / angle.sin()).to(first.dtype)


def _column(weights: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(weights, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.ndim - 1))


def few_levels(inferer: DiffusionAutoencoderInferer, steps: int) -> list[int]:
    """Choose ``steps`` + 1 of an inferer's levels, from x_T down to x0, at equal distances in its list."""
    levels = inferer.schedule.decoding_levels(inferer.solver_steps, inferer.settings.spacing)
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
    path = inferer.schedule.inversion_levels(inferer.solver_steps, inferer.settings.spacing)
    start = images if inferer.first_stage is None else inferer.first_stage.encode(images)
    return _states(path, start, levels, lambda keep: inferer.invert(images, network, z_sem, keep))


def decoded_trajectory(
    inferer: DiffusionAutoencoderInferer, x_T: Tensor, network: nn.Module, z_sem: Tensor, levels: Sequence[int]
) -> Tensor:
    """Noise at ``levels`` on its way down to an image: (B, L, C, *S), in the order of ``levels``.

    They are some of the inferer's levels, chosen by :func:`few_levels`.
    """
    path = inferer.schedule.decoding_levels(inferer.solver_steps, inferer.settings.spacing)
    return _states(path, x_T, levels, lambda keep: inferer.decode(z_sem, network, x_T, keep))


def _states(path: Sequence[int], start: Tensor, levels: Sequence[int], run: Callable[[StepCallback], Tensor]) -> Tensor:
    """The states at some levels of a path that ``run`` follows from ``start``: (B, L, C, *S)."""
    states = {path[0]: start}
    run(lambda done, total, x: states.update({path[done]: x}))
    return torch.stack([states[level] for level in levels], dim=1)
