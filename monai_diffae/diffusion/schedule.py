"""The noise schedule: signal and noise in x_t, conversions between x0, eps and v, and the levels of a run."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.networks.schedulers.scheduler import NoiseSchedules, Scheduler
from torch import Tensor

from monai_diffae.diffusion.settings import SpacingName
from monai_diffae.errors import ConfigError, quoted
from monai_diffae.policies import Range, check_choice

NOISE_LEFT = 0.15
"""Noise-to-signal ratio sigma / alpha at the cleanest level of a run of one step; with n steps it is n times smaller.

The last step, from this level to x0, is first order, so it must not be coarser than the steps before it. With 10 steps
the ratio is 1.5 %, about two grey levels of an 8-bit image.
"""

Prediction = Literal["eps", "x0", "v"]
Parameterisation = Literal["x0", "eps", "velocity"]
TimestepSampling = Literal["uniform", "logit_normal"]
LossWeighting = Literal["none", "min_snr"]
RECTIFIED_FLOW = "rectified_flow"
CLEAN = -1
"""The level of x0 itself: only signal, no noise. Level T is the opposite: only noise."""


def logsnr(steps: int, log_snr: Sequence[float]) -> list[int]:
    """Equal steps of log-SNR, from T - 1 to a level with hardly any noise (:data:`NOISE_LEFT`).

    Compared with equal steps of t, more steps are spent on the noisiest and the cleanest levels. Where the steps at the
    clean end would be smaller than one timestep, consecutive timesteps are used.
    """
    falling = np.asarray(log_snr)
    total = len(falling)
    cleanest = min(int(np.searchsorted(-falling, -math.log(steps / NOISE_LEFT))), total - steps)
    targets = np.linspace(falling[-1], falling[cleanest], steps)[::-1]
    t = np.round(np.interp(-targets, -falling, np.arange(total))).astype(int)
    index = np.arange(steps)
    t = np.maximum.accumulate(t - index) + index  # no timestep occurs twice ...
    return np.minimum(t, total - steps + index).tolist()  # ... and none is above T - 1


def leading(steps: int, log_snr: Sequence[float]) -> list[int]:
    """0, s, 2s, ...: equal steps of t from the clean end (the paper's code), which leave out the noisiest levels."""
    return [i * (len(log_snr) // steps) for i in range(steps)]


def trailing(steps: int, log_snr: Sequence[float]) -> list[int]:
    """..., T - 1 - s, T - 1: equal steps of t that end at the noisiest level (Lin et al. 2024)."""
    return [round((i + 1) * len(log_snr) / steps) - 1 for i in range(steps)]


def linspace(steps: int, log_snr: Sequence[float]) -> list[int]:
    """0, ..., T - 1: equal steps of t that include both ends."""
    last = len(log_snr) - 1
    return [last] if steps == 1 else [round(i * last / (steps - 1)) for i in range(steps)]


SPACINGS: dict[str, Callable[[int, Sequence[float]], list[int]]] = {
    "logsnr": logsnr,
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
}


@NoiseSchedules.add_def("cosine_official", "The cosine schedule of the official Diff-AE code: betas of at most 0.999")
def _cosine_official(num_train_timesteps: int) -> Tensor:
    s = torch.linspace(0, 1, num_train_timesteps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


class DiffusionSchedule(Scheduler):
    """x_t = alpha_t x0 + sigma_t eps, for variance-preserving schedules and for rectified flow.

    It is a MONAI ``Scheduler``, so MONAI's inferers can use it. It avoids three defects of MONAI's own schedulers
    (1.6.1): the tables stay in float64 whatever the network is cast to, sampling and inversion step between exactly the
    levels that ``set_timesteps`` chose, and eps is recomputed when x0 is clipped.

    With a variance-preserving schedule, alpha_t = sqrt(alpha_bar_t), sigma_t = sqrt(1 - alpha_bar_t), and
    v = alpha_t eps - sigma_t x0 (Salimans and Ho 2022). With ``rectified_flow`` (Liu et al. 2022), alpha_t = 1 - s and
    sigma_t = s for s = (t + 1) / T, and v = eps - x0 is the velocity of the straight path.

    Args:
        num_train_timesteps: T, the number of noise levels.
        schedule: one of MONAI's registered noise schedules (``linear_beta``, ``scaled_linear_beta``,
            ``sigmoid_beta``, ``cosine``), ``cosine_official`` or ``rectified_flow``.
        prediction: what the network predicts: ``eps``, ``x0`` or ``v``.
        zero_terminal_snr: rescale the betas so that x_T holds no signal at all (Lin et al. 2024, algorithm 1).
        timestep_sampling: distribution of t in training: ``uniform``, or ``logit_normal``, which prefers the middle
            levels (Esser et al. 2024).
        timestep_shift: factor of t / (T - t) for the t that are drawn in training (Esser et al. 2024, equation 23).
            A structure that covers more voxels needs more noise to be hidden, and z_sem is learnt where structures are
            hidden. The square root of (number of voxels / 64^2) is a good value.
        loss_weighting: ``none``, or ``min_snr`` with gamma 5 (Hang et al. 2023).
        spacing: how the levels of a run of few steps are spaced: ``logsnr``, ``leading`` (the paper's), ``trailing``
            or ``linspace``; see :mod:`monai_diffae.diffusion.schedule`.
        clip_range: x0 is clipped to this range during decoding and inversion; None: no clipping.
        schedule_args: arguments of MONAI's noise schedule, such as ``beta_start`` and ``beta_end``.

    Raises:
        ConfigError: a name is unknown, a value is invalid, or eps is to be predicted at a level without signal.

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
        clip_range: Range | list[float] | None = None,
        timestep_shift: float = 1.0,
        **schedule_args: Any,
    ) -> None:
        is_flow = schedule == RECTIFIED_FLOW
        check_choice("schedule", schedule, [*NoiseSchedules.components, RECTIFIED_FLOW])
        check_choice("prediction", prediction, Prediction)
        check_choice("timestep_sampling", timestep_sampling, TimestepSampling)
        check_choice("loss_weighting", loss_weighting, LossWeighting)
        check_choice("spacing", spacing, SPACINGS)
        self.clip_range = _checked_range(clip_range)
        if not 0 < timestep_shift < float("inf"):
            raise ConfigError(f"timestep_shift is {quoted(timestep_shift)}; it must be a number above 0, 1 for none")
        known = [] if is_flow else list(inspect.signature(NoiseSchedules[schedule]).parameters)[1:]
        unknown = [name for name in schedule_args if name not in known]
        if unknown:
            raise ConfigError(f"{unknown[0]}: the schedule {schedule} takes {', '.join(known) or 'no such argument'}")
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
        del self.betas, self.alphas, self.alphas_cumprod
        self.prediction = prediction
        self._set_levels(alpha, sigma)

        self.schedule = schedule
        self.timestep_sampling = timestep_sampling
        self.timestep_shift = timestep_shift
        self.loss_weighting = loss_weighting
        self.spacing: SpacingName = spacing
        self.zero_terminal_snr = zero_terminal_snr
        self.schedule_args = schedule_args
        self.set_timesteps(num_train_timesteps)

    def _set_levels(self, alpha: Tensor, sigma: Tensor) -> None:
        """Make the tables from alpha_t and sigma_t (T,) in float64."""
        if self.prediction == "eps" and alpha[-1] < 1e-6:
            raise ConfigError(
                "prediction 'eps' cannot be used with rectified_flow or zero_terminal_snr: "
                "x_T holds no signal there, so x0 cannot be computed from eps; use prediction 'v'"
            )
        # The tables have T + 2 entries. Entry t + 1 is timestep t; the first is x0 itself, the last is only noise.
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        self.register_buffer("alpha", torch.cat([one, alpha, zero]), persistent=False)
        self.register_buffer("sigma", torch.cat([zero, sigma, one]), persistent=False)
        # The same as Python numbers, which solvers can read without waiting for a GPU.
        self._levels = list(zip(self.alpha.tolist(), self.sigma.tolist(), strict=True))
        # If the network predicts eps, x0 is computed by a division by alpha, and the noisiest levels need the small
        # steps that equal steps of log-SNR give them. If it predicts x0 or v, they do not, and there may be levels
        # without signal. A cap then keeps log-SNR finite.
        self.log_snr_cap = 0.0 if self.prediction == "eps" else 0.15
        self._log_snrs = [self.log_snr(t) for t in range(self.num_train_timesteps)]
        # MONAI's table has T entries, without x0.
        self.register_buffer("alphas_cumprod", alpha**2 / (alpha**2 + sigma**2), persistent=False)

    def extra_repr(self) -> str:
        """All arguments, as ``repr`` shows them in one line."""
        names = [name for name in inspect.signature(DiffusionSchedule).parameters if name != "schedule_args"]
        arguments = {name: getattr(self, name) for name in names} | self.schedule_args
        return ", ".join(f"{name}={value!r}" for name, value in arguments.items())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DiffusionSchedule":
        # Follow the network to its device but not to its precision: tables in half precision lead to NaN.
        device = fn(torch.zeros(1)).device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for name, table in self._buffers.items():
            self._buffers[name] = table.to(device, dtype) if table is not None else None
        return self

    # -- levels ---------------------------------------------------------------------------------------------------

    def level(self, t: int) -> tuple[float, float]:
        """alpha_t and sigma_t of one level, from -1 (x0 itself) to T (only noise)."""
        if not CLEAN <= t <= self.num_train_timesteps:
            raise ConfigError(
                f"there is no level {t}; levels are -1 (x0 itself) to {self.num_train_timesteps} (only noise)"
            )
        return self._levels[t + 1]

    def log_snr(self, t: int) -> float:
        """Half the log-SNR of a timestep in [0, T): log(alpha_t / sigma_t), with a cap that keeps it finite.

        It is log((1 - s + c) / s), where s = sigma / (alpha + sigma) and c is the cap, which is 0 if the network
        predicts eps.
        """
        alpha, sigma = self.level(t)
        s = sigma / (alpha + sigma)
        return math.log((1 - s + self.log_snr_cap) / s)

    def half_log_snr(self, t: int) -> float:
        """log(alpha / sigma), lambda in the solvers' papers: infinite for x0 itself, minus infinity without signal."""
        alpha, sigma = self.level(t)
        return -math.inf if alpha == 0 else math.inf if sigma == 0 else math.log(alpha / sigma)

    @property
    def natural_parameterisation(self) -> Parameterisation:
        """What solvers interpolate: eps if the network predicts it, else the velocity.

        The velocity's equation never divides by zero. A network that predicts eps is used only with schedules where x_T
        still holds signal, so that nothing is divided by zero either.
        """
        return "eps" if self.prediction == "eps" else "velocity"

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t of levels ``t`` (B,) in [-1, T], in a shape that multiplies ``like`` (B, C, *S)."""
        shape = (-1, *[1] * (like.ndim - 1))
        index = t.to(self.alpha.device).long() + 1
        return (
            self.alpha[index].to(like.device, like.dtype).view(shape),
            self.sigma[index].to(like.device, like.dtype).view(shape),
        )

    def inference_timesteps(self, steps: int, spacing: SpacingName | None = None) -> list[int]:
        """The timesteps of a run of ``steps`` steps, ascending, in [0, T)."""
        total = self.num_train_timesteps
        if not 1 <= steps <= total:
            raise ConfigError(f"steps is {steps}; it must be between 1 and {total}, the levels of the schedule")
        spacing = self.spacing if spacing is None else spacing
        check_choice("spacing", spacing, SPACINGS)
        return SPACINGS[spacing](steps, self._log_snrs)

    def decoding_levels(self, steps: int, spacing: SpacingName | None = None) -> list[int]:
        """The ``steps`` + 1 levels from x_T down to x0."""
        return [*self.inference_timesteps(steps, spacing)[::-1], CLEAN]

    def inversion_levels(self, steps: int, spacing: SpacingName | None = None) -> list[int]:
        """The same levels from x0 up to x_T."""
        return self.decoding_levels(steps, spacing)[::-1]

    def paper_inversion_levels(self, steps: int, spacing: SpacingName | None = None) -> list[int]:
        """The levels of the paper's inversion: from 0 to T with its spacing ``leading``, else :meth:`inversion_levels`.

        The official code assigns x0 to timestep 0, and ends at level T, where no signal is left.
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
        """The training target for x_t: eps, x0 or v (B, C, *S), as ``prediction`` says."""
        if self.prediction == "eps":
            return eps
        return x0 if self.prediction == "x0" else self.velocity(x0, eps, t)

    def to_x0_eps(
        self, output: Tensor, x_t: Tensor, t: Tensor, clip_range: Range | None = None
    ) -> tuple[Tensor, Tensor]:
        """Convert the network's output to (x0, eps), in float32 or better.

        If x0 is clipped, eps is recomputed from x_t and the clipped x0, so that x_t = alpha_t x0 + sigma_t eps holds.
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
        """Draw ``count`` training timesteps (count,), on the CPU."""
        if self.timestep_sampling == "uniform" and self.timestep_shift == 1:
            return torch.randint(0, self.num_train_timesteps, (count,), generator=generator)
        if self.timestep_sampling == "uniform":
            s = torch.rand(count, generator=generator)
        else:
            s = torch.sigmoid(torch.randn(count, generator=generator))
        s = self.timestep_shift * s / (1 + (self.timestep_shift - 1) * s)
        return (s * self.num_train_timesteps).long().clamp_(max=self.num_train_timesteps - 1)

    def stratified_timesteps(self, count: int) -> Tensor:
        """``count`` timesteps (count,): the middles of ``count`` equal parts of [0, T)."""
        return ((torch.arange(count, dtype=torch.float64) + 0.5) / count * self.num_train_timesteps).long()

    def loss_weights(self, t: Tensor, gamma: float = 5.0) -> Tensor:
        """One weight per sample for its squared error (B,), float32; min-SNR as in Hang et al. 2023, equation 5."""
        if self.loss_weighting == "none":
            return torch.ones(t.shape, device=t.device)
        index = t.to(self.alpha.device).long() + 1
        snr = (self.alpha[index] / self.sigma[index]) ** 2
        weight = snr.clamp(max=gamma)
        if self.prediction == "eps":
            weight = weight / snr
        elif self.prediction == "v":
            # A squared error of v is sigma^2 times as large for x0; sigma^2 = 1 / (snr + 1) if variance is preserved.
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
        """Choose the levels for :meth:`step` and :meth:`reversed_step`; ``timesteps`` lists them, falling."""
        self.num_inference_steps = num_inference_steps
        ascending = self.inference_timesteps(num_inference_steps)
        self._neighbors = {
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
        """One DDIM step from ``timestep`` to the next of the chosen levels below; returns (x_next, x0)."""
        return self._step(model_output, int(timestep), 0, sample, eta, generator)

    def reversed_step(self, model_output: Tensor, timestep: int, sample: Tensor) -> tuple[Tensor, Tensor]:
        """One DDIM inversion step from ``timestep`` to the next of the chosen levels above; returns (x_next, x0).

        From the highest level, x does not move.
        """
        return self._step(model_output, int(timestep), 1, sample)

    def _step(
        self,
        output: Tensor,
        t: int,
        side: int,
        x_t: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step from level ``t`` to its neighbor below (``side`` 0) or above (1)."""
        batch = torch.full((x_t.shape[0],), t, device=x_t.device)
        x0, eps = self.to_x0_eps(output, x_t, batch, self.clip_range)
        return self.ddim_step(x0, eps, t, self._neighbors[t][side], eta, generator), x0

    def ddim_step(
        self,
        x0: Tensor,
        eps: Tensor,
        t: int,
        t_next: int,
        eta: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """The image at level ``t_next``, given (x0, eps) at level ``t``: DDIM (Song et al. 2021, equation 12).

        With ``eta`` above 0 it contains new noise (equation 16), from one generator or from one per image. For
        rectified flow and ``eta`` 0, it is Euler's step.
        """
        alpha_next, sigma_next = self.level(t_next)
        if eta == 0:
            return alpha_next * x0 + sigma_next * eps
        alpha, sigma = self.level(t)
        # the standard deviation of q(x_next | x_t, x0), for any alpha and sigma
        new_sigma = eta * sigma_next * max(1 - (alpha * sigma_next / (alpha_next * sigma)) ** 2, 0) ** 0.5
        old_sigma = max(sigma_next**2 - new_sigma**2, 0) ** 0.5
        return alpha_next * x0 + old_sigma * eps + new_sigma * _noise_like(x0, generator)


def _noise_like(x: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    if isinstance(generator, Sequence):
        return torch.cat([_noise_like(x[i : i + 1], each) for i, each in enumerate(generator)])
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def _checked_range(clip_range: Range | list[float] | None) -> Range | None:
    if clip_range is None:
        return None
    low, high = map(float, clip_range)
    if not low < high:
        raise ConfigError(f"clip_range is {quoted(clip_range)}; it must be the least and the greatest value, or null")
    return low, high
