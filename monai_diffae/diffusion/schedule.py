"""The noise schedule: how much signal and noise x_t holds, and how x0, eps and v follow from one another."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from monai.networks.schedulers.scheduler import NoiseSchedules, Scheduler
from torch import Tensor

from monai_diffae.diffusion.names import SpacingName
from monai_diffae.diffusion.timesteps import SPACINGS
from monai_diffae.errors import ConfigError

Prediction = Literal["eps", "x0", "v"]
TimestepSampling = Literal["uniform", "logit_normal"]
LossWeighting = Literal["none", "min_snr"]

RECTIFIED_FLOW = "rectified_flow"
CLEAN = -1  # the level of x0 itself: all signal, no noise; T is the opposite, all noise


class DiffusionSchedule(Scheduler):
    """x_t = alpha_t x0 + sigma_t eps, for variance-preserving schedules and for rectified flow alike.

    It is a MONAI ``Scheduler``, so MONAI's inferers can use it, and mends what MONAI's own get wrong (1.6.1):
    the tables stay in float64 whatever is cast, sampling and inversion step between the very levels that
    ``set_timesteps`` chose, and eps is derived again when x0 is clipped.

    With a variance-preserving schedule alpha_t = sqrt(alpha_bar_t), sigma_t = sqrt(1 - alpha_bar_t), and
    v = alpha_t eps - sigma_t x0 (Salimans and Ho 2022). With ``rectified_flow`` (Liu et al. 2022)
    alpha_t = 1 - s, sigma_t = s at s = (t + 1) / T, and v = eps - x0 is the velocity of the straight path.

    Args:
        num_train_timesteps: T, the number of noise levels.
        schedule: one of MONAI's registered noise schedules (``linear_beta``, ``scaled_linear_beta``,
            ``sigmoid_beta``, ``cosine``) or ``rectified_flow``.
        prediction: what the network's output means: ``eps``, ``x0`` or ``v``.
        zero_terminal_snr: rescale the betas so that x_T holds no signal at all (Lin et al. 2024, algorithm 1).
        timestep_sampling: how training draws t: ``uniform``, or ``logit_normal`` (Esser et al. 2024), which
            dwells on the middle levels.
        timestep_shift: multiplies t / (T - t) of the drawn t (Esser et al. 2024, equation 23). The more voxels show a
            thing, the more noise it takes to hide it, and z_sem is learnt where it is hidden: the square root of how
            many times as many voxels as 64 x 64 an image has is a good value.
        loss_weighting: ``none``, or ``min_snr`` with gamma 5 (Hang et al. 2023).
        spacing: which levels a run of few steps visits: ``logsnr`` (see :mod:`monai_diffae.diffusion.timesteps`),
            ``leading`` 0, s, 2s, ... (the paper's), ``trailing`` or ``linspace``.
        clip_range: x0 is clipped to it during decoding and inversion; None: no clipping.
        schedule_args: passed to MONAI's noise schedule, such as ``beta_start`` and ``beta_end``.

    Raises:
        ConfigError: an unknown name, a ``clip_range`` that is none, or eps-prediction from a level without signal.

    Example:
        >>> schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v")
        >>> x0, eps = torch.zeros(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
        >>> t = torch.tensor([0, 999])
        >>> x_t = schedule.q_sample(x0, eps, t)
        >>> x0_again, eps_again = schedule.to_x0_eps(schedule.target(x0, eps, t), x_t, t)
        >>> torch.allclose(x0_again, x0, atol=1e-6), torch.allclose(eps_again, eps, atol=1e-5)
        (True, True)
    """

    alpha: Tensor
    sigma: Tensor
    alphas_cumprod: Tensor

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        schedule: str = "linear_beta",
        prediction: Prediction = "v",
        zero_terminal_snr: bool = False,
        timestep_sampling: TimestepSampling = "uniform",
        loss_weighting: LossWeighting = "none",
        spacing: SpacingName = "logsnr",
        clip_range: tuple[float, float] | list[float] | None = None,
        timestep_shift: float = 1.0,
        **schedule_args: Any,
    ) -> None:
        is_flow = schedule == RECTIFIED_FLOW
        _check_choice("schedule", schedule, [*NoiseSchedules.components, RECTIFIED_FLOW])
        _check_choice("prediction", prediction, ["eps", "x0", "v"])
        _check_choice("timestep_sampling", timestep_sampling, ["uniform", "logit_normal"])
        _check_choice("loss_weighting", loss_weighting, ["none", "min_snr"])
        _check_choice("spacing", spacing, list(SPACINGS))
        self.clip_range = _checked_range(clip_range)
        if not (isinstance(timestep_shift, (int, float)) and 0 < timestep_shift < float("inf")):
            raise ConfigError(f"timestep_shift is {timestep_shift!r}; it must be a number above 0, 1 for none")
        takes = [] if is_flow else list(inspect.signature(NoiseSchedules[schedule]).parameters)[1:]
        unknown = [name for name in schedule_args if name not in takes]
        if unknown:
            raise ConfigError(f"{unknown[0]}: the schedule {schedule} takes {', '.join(takes) or 'no such argument'}")
        super().__init__(num_train_timesteps, "linear_beta" if is_flow else schedule, **schedule_args)

        if is_flow:
            s = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
            alpha, sigma = 1 - s, s
        else:
            alpha_bar = torch.cumprod(1 - self.betas.double(), dim=0)
            if zero_terminal_snr:
                root = alpha_bar.sqrt()
                alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
            alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if prediction == "eps" and alpha[-1] < 1e-6:
            raise ConfigError(
                "prediction 'eps' cannot be used with rectified_flow or zero_terminal_snr: "
                "x_T holds no signal there, so x0 does not follow from eps; use prediction 'v'"
            )

        # The tables have T + 2 entries: entry t + 1 is timestep t, the first is x0 itself, the last is all noise.
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        del self.betas, self.alphas, self.alphas_cumprod
        self.register_buffer("alpha", torch.cat([one, alpha, zero]), persistent=False)
        self.register_buffer("sigma", torch.cat([zero, sigma, one]), persistent=False)
        # the same as plain numbers, which a solver can use without waiting for a GPU
        self._levels = list(zip(self.alpha.tolist(), self.sigma.tolist(), strict=True))
        # A network that gives eps has x0 only after a division by alpha, so the noisiest levels need the small steps
        # that equal steps of log-SNR give them; others do not, and can have levels without any signal.
        self.log_snr_cap = 0.0 if prediction == "eps" else 0.15
        self._log_snrs = [self.log_snr(t) for t in range(num_train_timesteps)]
        # MONAI's name and length: T entries, without x0
        self.register_buffer("alphas_cumprod", alpha**2 / (alpha**2 + sigma**2), persistent=False)

        self.schedule = schedule
        self.prediction = prediction
        self.timestep_sampling = timestep_sampling
        self.timestep_shift = timestep_shift
        self.loss_weighting = loss_weighting
        self.spacing: SpacingName = spacing
        self.set_timesteps(num_train_timesteps)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DiffusionSchedule:
        # Follow the network to its device, never to its precision: half-precision tables give NaN.
        device = fn(torch.zeros(1)).device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for name, table in self._buffers.items():
            self._buffers[name] = table.to(device, dtype) if table is not None else None
        return self

    # -- levels ---------------------------------------------------------------------------------------------------

    def level(self, t: int) -> tuple[float, float]:
        """alpha_t and sigma_t of one level, -1 (x0 itself) to T (all noise).

        Raises:
            ConfigError: there is no such level.
        """
        if not CLEAN <= t <= self.num_train_timesteps:
            raise ConfigError(f"level {t}: there are levels -1 (x0 itself) to {self.num_train_timesteps} (all noise)")
        return self._levels[t + 1]

    def log_snr(self, t: int) -> float:
        """Half the log-SNR of a timestep in [0, T): log(alpha_t / sigma_t), capped so that it is finite without signal.

        With s = sigma / (alpha + sigma) and the cap c it is log((1 - s + c) / s), at every level; c is 0 where the
        network predicts eps.
        """
        alpha, sigma = self.level(t)
        s = sigma / (alpha + sigma)
        return math.log((1 - s + self.log_snr_cap) / s)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t for levels ``t`` (B,), -1 to T, shaped to multiply ``like`` (B, C, *S)."""
        shape = (-1, *[1] * (like.ndim - 1))
        index = t.to(self.alpha.device).long() + 1
        return (
            self.alpha[index].to(like.device, like.dtype).view(shape),
            self.sigma[index].to(like.device, like.dtype).view(shape),
        )

    def inference_timesteps(self, steps: int, spacing: SpacingName | None = None) -> list[int]:
        """The ``steps`` timesteps that a short run visits, ascending, in [0, T).

        Raises:
            ConfigError: ``steps`` is not in [1, T], or there is no such spacing.
        """
        total = self.num_train_timesteps
        if not 1 <= steps <= total:
            raise ConfigError(f"steps is {steps}; it must be between 1 and {total}, the levels of the schedule")
        spacing = self.spacing if spacing is None else spacing
        _check_choice("spacing", spacing, list(SPACINGS))
        return SPACINGS[spacing](steps, self._log_snrs)

    def decoding_levels(self, steps: int, spacing: SpacingName | None = None) -> list[int]:
        """The levels from x_T down to x0: ``steps`` steps."""
        return [*self.inference_timesteps(steps, spacing)[::-1], CLEAN]

    def inversion_levels(self, steps: int, spacing: SpacingName | None = None) -> list[int]:
        """The same levels from x0 up to x_T."""
        return self.decoding_levels(steps, spacing)[::-1]

    def paper_inversion_levels(self, steps: int, spacing: SpacingName | None = None) -> list[int]:
        """The levels of the paper's inversion: with its own spacing, ``leading``, from 0 to T, else the decoder's.

        The official code takes x0 to be at timestep 0 already, and ends where no signal is left.
        """
        if (self.spacing if spacing is None else spacing) == "leading":
            return [*self.inference_timesteps(steps, "leading"), self.num_train_timesteps]
        return self.inversion_levels(steps, spacing)

    # -- x0, eps, v -----------------------------------------------------------------------------------------------

    def q_sample(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t eps (B, C, *S); ``t`` (B,) in [-1, T)."""
        alpha, sigma = self.coefficients(t, x0)
        return alpha * x0 + sigma * eps

    def velocity(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """v: alpha_t eps - sigma_t x0, or eps - x0 on the straight path of rectified flow."""
        a, b = self._velocity_coefficients(t, x0)
        return a * eps - b * x0

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to give for x_t."""
        if self.prediction == "eps":
            return eps
        return x0 if self.prediction == "x0" else self.velocity(x0, eps, t)

    def to_x0_eps(
        self, output: Tensor, x_t: Tensor, t: Tensor, clip_range: tuple[float, float] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The network's output as (x0, eps), computed in float32 at least.

        Where x0 is clipped, eps is derived again from x_t and the clipped x0, so that the two still make up x_t.
        """
        dtype = torch.promote_types(x_t.dtype, torch.float32)
        output, x_t = output.to(dtype), x_t.to(dtype)
        alpha, sigma = self.coefficients(t, x_t)
        if self.prediction == "eps":
            x0, eps = (x_t - sigma * output) / alpha, output
        elif self.prediction == "x0":
            x0, eps = output, (x_t - alpha * output) / sigma
        else:
            a, b = self._velocity_coefficients(t, x_t)
            norm = a * alpha + b * sigma
            x0, eps = (a * x_t - sigma * output) / norm, (b * x_t + alpha * output) / norm
        if clip_range is not None:
            x0 = x0.clamp(*clip_range)
            eps = (x_t - alpha * x0) / sigma
        return x0, eps

    def _velocity_coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.schedule == RECTIFIED_FLOW:
            one = torch.ones((), dtype=like.dtype, device=like.device)
            return one, one
        return self.coefficients(t, like)

    # -- training -------------------------------------------------------------------------------------------------

    def sample_timesteps(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """``count`` training timesteps (count,) on the CPU, as ``timestep_sampling`` and ``timestep_shift`` say."""
        if self.timestep_sampling == "uniform" and self.timestep_shift == 1:
            return torch.randint(0, self.num_train_timesteps, (count,), generator=generator)
        if self.timestep_sampling == "uniform":
            s = torch.rand(count, generator=generator)
        else:
            s = torch.sigmoid(torch.randn(count, generator=generator))
        s = self.timestep_shift * s / (1 + (self.timestep_shift - 1) * s)
        return (s * self.num_train_timesteps).long().clamp_(max=self.num_train_timesteps - 1)

    def stratified_timesteps(self, count: int) -> Tensor:
        """``count`` timesteps (count,), one from the middle of each of ``count`` equal parts of [0, T)."""
        return ((torch.arange(count, dtype=torch.float64) + 0.5) / count * self.num_train_timesteps).long()

    def loss_weights(self, t: Tensor, gamma: float = 5.0) -> Tensor:
        """The weight of each sample's squared error (B,), float32; min-SNR as in Hang et al. 2023, equation 5."""
        if self.loss_weighting == "none":
            return torch.ones(t.shape, device=t.device)
        index = t.to(self.alpha.device).long() + 1
        snr = (self.alpha[index] / self.sigma[index]) ** 2
        weight = snr.clamp(max=gamma)
        if self.prediction == "eps":
            weight = weight / snr
        elif self.prediction == "v":
            # the error of x0 that an error of v makes; sigma^2 = 1 / (snr + 1) where variance is preserved
            weight = weight * self.sigma[index] ** 2
        return weight.to(t.device, torch.float32)

    # -- MONAI's Scheduler interface ------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """MONAI's name for :meth:`q_sample`."""
        return self.q_sample(original_samples, noise, timesteps)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """MONAI's name for :meth:`velocity`."""
        return self.velocity(sample, noise, timesteps)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the levels that ``step`` and ``reversed_step`` move between; ``timesteps`` is descending."""
        self.num_inference_steps = num_inference_steps
        ascending = self.inference_timesteps(num_inference_steps)
        self._neighbours = {
            t: (below, above)
            for below, t, above in zip([CLEAN, *ascending], ascending, [*ascending[1:], ascending[-1]], strict=False)
        }
        self.timesteps = torch.tensor(ascending[::-1], device=device)

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One DDIM step down from ``timestep`` to the next level that ``set_timesteps`` chose; (x_next, x0)."""
        below, _ = self._level(timestep)
        return self._move(model_output, int(timestep), below, sample, eta, generator)

    def reversed_step(self, model_output: Tensor, timestep: int, sample: Tensor) -> tuple[Tensor, Tensor]:
        """One DDIM inversion step up from ``timestep``; the last level stays where it is. Gives (x_next, x0)."""
        _, above = self._level(timestep)
        return self._move(model_output, int(timestep), above, sample)

    def _level(self, timestep: int) -> tuple[int, int]:
        if int(timestep) not in self._neighbours:
            raise ConfigError(f"timestep {int(timestep)} is not one of the levels that set_timesteps chose")
        return self._neighbours[int(timestep)]

    def _move(
        self,
        output: Tensor,
        t: int,
        t_next: int,
        x_t: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        batch = torch.full((x_t.shape[0],), t, device=x_t.device)
        x0, eps = self.to_x0_eps(output, x_t, batch, self.clip_range)
        return self.ddim_move(x0, eps, t, t_next, eta, generator), x0

    def ddim_move(
        self,
        x0: Tensor,
        eps: Tensor,
        t: int,
        t_next: int,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The image at level ``t_next`` from (x0, eps) at level ``t``.

        DDIM, equation 12 (Song et al. 2021); for rectified flow with eta = 0 this is Euler's step. ``eta`` adds the
        fresh noise of equation 16.
        """
        alpha_next, sigma_next = self.level(t_next)
        if eta == 0:
            return alpha_next * x0 + sigma_next * eps
        alpha, sigma = self.level(t)
        # the deviation of q(x_next | x_t, x0), for any alpha and sigma
        fresh = eta * sigma_next * max(1 - (alpha * sigma_next / (alpha_next * sigma)) ** 2, 0) ** 0.5
        kept = max(sigma_next**2 - fresh**2, 0) ** 0.5
        drawn_on = x0.device if generator is None else generator.device
        noise = torch.randn(x0.shape, generator=generator, device=drawn_on, dtype=x0.dtype).to(x0.device)
        return alpha_next * x0 + kept * eps + fresh * noise


def _checked_range(clip_range: tuple[float, float] | list[float] | None) -> tuple[float, float] | None:
    if clip_range is None:
        return None
    try:
        low, high = (float(value) for value in clip_range)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not low < high:
        raise ConfigError(f"clip_range is {clip_range!r}; it must be the least and the greatest value, or null")
    return low, high


def _check_choice(key: str, value: object, choices: list[Any]) -> None:
    if value not in choices:
        names = ", ".join(str(c) for c in choices)
        raise ConfigError(f"{key} is {value!r}; choose one of: {names}")
