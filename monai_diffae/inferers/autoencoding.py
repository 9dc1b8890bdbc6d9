"""What a diffusion autoencoder does with images: encode, invert, decode, reconstruct; and its training forward."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from monai_diffae.diffusion import (
    SOLVERS,
    Denoiser,
    DiffusionSchedule,
    InversionName,
    Solver,
    SpacingName,
    StepCallback,
    ddim,
    heun,
    implicit_inversion,
    refined_inversion,
)
from monai_diffae.errors import ConfigError
from monai_diffae.inferers.slices import from_slices, to_slices
from monai_diffae.networks.first_stage import FirstStage

ReconstructionMode = Literal["x_T", "z_sem"]

logger = logging.getLogger(__name__)


class DiffusionAutoencoderInferer(Inferer):
    """Encoding, inversion and decoding with one schedule; called itself, it is the training forward.

    The defaults follow from the curves that ``benchmarks/solvers.py`` draws: 20 network evaluations to invert and 20 to
    decode bring an image back more exactly than the paper's 250 and 100.

    With a 2D network, images may also be volumes (B, C, H, W, D): they are taken slice by slice along the last axis,
    and z_sem is (B, D, Z).

    With a first stage, the network works on its latents: images go in and come out all the same, and x_T is the
    latents' noise. Latents have no bounds, so the schedule's ``clip_range`` should be None.

    Args:
        schedule: the noise schedule that the network is trained with.
        solver: ``adams``, ``dpmpp_2m``, ``unipc``, ``heun``, ``ddim`` or ``euler``, or a function of their signature.
        steps: network evaluations for decoding. Heun's method takes two a step but one for the last, so of an even
            number it leaves one.
        invert_steps: network evaluations for inversion; None: as many. Where there are more than for decoding, the
            levels are still the decoder's, and the cleanest of them get more than one; where there are fewer, the
            levels differ, which costs accuracy.
        inversion: ``implicit``, which undoes the solver's steps; ``ddim``: first order, with spacing ``leading`` the
            paper's.
        invert_tolerance: mean squared error, of what the network works on, up to which :meth:`round_trip` takes an
            implicit inversion as it is; beyond, it is refined. None: whatever it is.
        spacing: the levels that a run visits; None: the schedule's.
        clip: clip x0 to the schedule's ``clip_range`` at every step.
        batch_size: images at once; more are taken in turn.
        first_stage: between the images and what the network works on; None: these are the images.

    Raises:
        ConfigError: an unknown name, a number of steps that the schedule does not have, or latents that would be
            clipped.

    Example:
        >>> from monai_diffae.networks import build_autoencoder
        >>> network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
        >>> inferer = DiffusionAutoencoderInferer(DiffusionSchedule(), steps=5)
        >>> images = torch.rand(2, 1, 16, 16) * 2 - 1
        >>> inferer.reconstruct(images, network.eval(), mode="x_T").shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        schedule: DiffusionSchedule,
        solver: str | Solver = "adams",
        steps: int = 20,
        invert_steps: int | None = None,
        inversion: InversionName = "implicit",
        invert_tolerance: float | None = 1e-3,
        spacing: SpacingName | None = None,
        clip: bool = True,
        batch_size: int = 64,
        first_stage: FirstStage | None = None,
    ) -> None:
        if not isinstance(schedule, DiffusionSchedule):
            raise ConfigError(f"schedule is {schedule!r}; it must be a DiffusionSchedule")
        if not callable(solver) and not (isinstance(solver, str) and solver in SOLVERS):
            raise ConfigError(f"solver is {solver!r}; choose one of: {', '.join(SOLVERS)}")
        if inversion not in get_args(InversionName):
            raise ConfigError(f"inversion is {inversion!r}; choose one of: {', '.join(get_args(InversionName))}")
        counts = {"steps": steps, "invert_steps": invert_steps, "batch_size": batch_size}
        for name, count in counts.items():
            if count is not None and (type(count) is not int or count < 1):
                raise ConfigError(f"{name} is {count!r}; it must be a whole number, at least 1")
        if invert_tolerance is not None and not (type(invert_tolerance) in (int, float) and invert_tolerance > 0):
            raise ConfigError(f"invert_tolerance is {invert_tolerance!r}; it must be a number above 0, or null")
        if type(clip) is not bool:
            raise ConfigError(f"clip is {clip!r}; it must be true or false")
        self.schedule = schedule
        self.solver: Solver = solver if callable(solver) else SOLVERS[solver]
        # a functools.partial, for a solver's own options, is still that solver
        algorithm = getattr(self.solver, "func", self.solver)
        self.num_intervals = (steps + 1) // 2 if algorithm is heun else steps
        self.steps = 2 * self.num_intervals - 1 if algorithm is heun else steps
        self.invert_steps = self.steps if invert_steps is None else invert_steps
        self.invert_order = 1 if algorithm is ddim else 3
        self.inversion = inversion
        self.invert_tolerance = invert_tolerance
        self.spacing = spacing
        self.clip_range = schedule.clip_range if clip else None
        self.batch_size = batch_size
        if first_stage is not None and self.clip_range is not None:
            raise ConfigError(
                f"clip_range is {list(self.clip_range)}; a first stage's latents have no bounds: set it to null"
            )
        self.first_stage = first_stage
        schedule.inference_timesteps(self.num_intervals, spacing)
        if inversion == "ddim" and self.invert_steps > schedule.num_train_timesteps:
            raise ConfigError(
                f"invert_steps is {self.invert_steps}; with inversion 'ddim' it must be at most "
                f"{schedule.num_train_timesteps}, the levels of the schedule"
            )

    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: nn.Module, noise: Tensor, timesteps: Tensor, condition: Tensor, **_: Any
    ) -> Tensor:
        """The training forward (B, C, *S): the network's output for q(x_t | inputs).

        Args:
            inputs: clean images x0 (B, C, *S) in the model's range; with a first stage, their latents.
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
        """z_sem (B, Z), float32, of images (B, C, *S); (B, D, Z) of volumes for a 2D network."""

        def run(images: Tensor) -> tuple[Tensor]:
            z_sem: Tensor = network.encode(self._from_images(images).to(_precision(network)))  # type: ignore[operator]
            return (z_sem.float(),)

        (z_sem,) = self._in_batches(run, network, images)
        return z_sem

    @torch.no_grad()
    def invert(
        self, images: Tensor, network: nn.Module, z_sem: Tensor | None = None, callback: StepCallback | None = None
    ) -> Tensor:
        """The stochastic code x_T, float32 at least, of images, given their z_sem (encoded here when None).

        Whether it decodes to the image is not asked here: :meth:`round_trip` does. x_T is (B, C, *S); with a first
        stage, as :meth:`x_T_shape` says.

        Args:
            images: (B, C, *S) in the model's range.
            network: the trained autoencoder.
            z_sem: (B, Z).
            callback: called after each step; with more images than ``batch_size``, after each step of each batch.
        """

        def run(images: Tensor, z_sem: Tensor) -> tuple[Tensor]:
            return (self._inverted(self._from_images(images), _denoiser(network, z_sem), callback),)

        z_sem = self.encode(images, network) if z_sem is None else z_sem
        (x_T,) = self._in_batches(run, network, images, z_sem)
        return x_T

    @torch.no_grad()
    def decode(
        self,
        z_sem: Tensor,
        x_T: Tensor,
        network: nn.Module,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Images (B, C, *S), float32 at least, from z_sem (B, Z) and x_T as ``invert`` gives it; callback as there."""

        def run(x_T: Tensor, z_sem: Tensor) -> tuple[Tensor]:
            return (self._to_images(self._decoded(x_T, _denoiser(network, z_sem), callback)),)

        (images,) = self._in_batches(run, network, x_T, z_sem)
        return images

    @torch.no_grad()
    def round_trip(
        self, images: Tensor, network: nn.Module, z_sem: Tensor | None = None, callback: StepCallback | None = None
    ) -> tuple[Tensor, Tensor]:
        """x_T as :meth:`invert` gives it, and what it decodes to; where that is not the image, x_T is refined.

        An image that does not come back within ``invert_tolerance`` is inverted again by itself, with some hundred
        evaluations or more (:func:`~monai_diffae.diffusion.refined_inversion`). If it does not come back then either,
        a warning says so.

        Args:
            images: (B, C, *S) in the model's range.
            network: the trained autoencoder.
            z_sem: (B, Z); encoded here when None.
            callback: called after each step of inversion and of decoding, but not of a refinement.

        Returns:
            x_T, and the reconstruction (B, C, *S).
        """

        def run(images: Tensor, z_sem: Tensor) -> tuple[Tensor, Tensor]:
            x_0, denoise = self._from_images(images), _denoiser(network, z_sem)
            x_T = self._inverted(x_0, denoise, callback)
            decoded = self._decoded(x_T, denoise, callback)
            x_T, decoded = self._refined(x_0, z_sem, x_T, decoded, network)
            return x_T, self._to_images(decoded)

        z_sem = self.encode(images, network) if z_sem is None else z_sem
        x_T, reconstruction = self._in_batches(run, network, images, z_sem)
        return x_T, reconstruction

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
            mode: ``x_T``: with each image's own inverted x_T, near-exact, by :meth:`round_trip`; ``z_sem``: from z_sem
                alone, with the noise given as ``x_T`` (drawn here when None), the same semantics with other details.
            x_T: the stochastic codes for mode ``z_sem``.
            callback: called after each step of inversion and of decoding.

        Raises:
            ConfigError: no such mode, x_T of another shape, or x_T given in mode ``x_T``, which inverts its own.
        """
        if mode not in get_args(ReconstructionMode):
            raise ConfigError(f"mode: {mode!r} is not one of {', '.join(get_args(ReconstructionMode))}")
        if mode == "x_T":
            if x_T is not None:
                raise ConfigError("x_T was given, but mode 'x_T' inverts each image's own; use mode 'z_sem', or decode")
            return self.round_trip(images, network, callback=callback)[1]
        shape = (images.shape[0], *self.x_T_shape(images.shape[1:]))
        if x_T is None:
            x_T = torch.randn(shape, device=images.device)
        if x_T.shape != shape:
            raise ConfigError(f"x_T has the shape {tuple(x_T.shape)}; with these images it must be {shape}")
        return self.decode(self.encode(images, network), x_T, network, callback)

    def x_T_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the x_T of one image (C, *S): the same, or that of its latents."""
        return tuple(image_shape) if self.first_stage is None else self.first_stage.latent_shape(image_shape)

    def _from_images(self, images: Tensor) -> Tensor:
        return images if self.first_stage is None else self.first_stage.encode(images)

    def _to_images(self, x_0: Tensor) -> Tensor:
        return x_0 if self.first_stage is None else self.first_stage.decode(x_0)

    def _inverted(self, x_0: Tensor, denoise: Denoiser, callback: StepCallback | None) -> Tensor:
        """x_T of what the network works on."""
        if self.inversion == "ddim":
            levels = self.schedule.paper_inversion_levels(self.invert_steps, self.spacing)
            return ddim(denoise, self.schedule, x_0, levels, clip_range=self.clip_range, callback=callback)
        return implicit_inversion(
            denoise, self.schedule, x_0,
            self.schedule.inversion_levels(min(self.num_intervals, self.invert_steps), self.spacing),
            num_evaluations=self.invert_steps, order=self.invert_order, clip_range=self.clip_range, callback=callback,
        )  # fmt: skip

    def _decoded(self, x_T: Tensor, denoise: Denoiser, callback: StepCallback | None = None) -> Tensor:
        """What the network works on, of x_T."""
        levels = self.schedule.decoding_levels(self.num_intervals, self.spacing)
        x_0 = self.solver(denoise, self.schedule, x_T, levels, clip_range=self.clip_range, callback=callback)
        if x_0.shape != x_T.shape:
            raise ConfigError(f"the solver made {tuple(x_0.shape)} of x_T {tuple(x_T.shape)}; it must keep the shape")
        return x_0

    def _refined(
        self, x_0: Tensor, z_sem: Tensor, x_T: Tensor, decoded: Tensor, network: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """x_T and what it decodes to, those that miss x_0 by more than the tolerance inverted again, one by one."""
        tolerance = self.invert_tolerance
        if tolerance is None or self.inversion == "ddim":
            return x_T, decoded
        x_T, decoded, errors = x_T.clone(), decoded.clone(), _mean_squares(decoded - x_0)
        levels = self.schedule.inversion_levels(self.num_intervals, self.spacing)
        for i in (~(errors <= tolerance)).nonzero().flatten().tolist():
            denoise = _denoiser(network, z_sem[i : i + 1])
            found, back = refined_inversion(
                denoise, partial(self._decoded, denoise=denoise), self.schedule, x_0[i : i + 1], levels,
                tolerance=tolerance, order=self.invert_order, clip_range=self.clip_range,
            )  # fmt: skip
            if (error := _mean_squares(back - x_0[i : i + 1])[0]) < errors[i]:
                x_T[i], decoded[i], errors[i] = found[0], back[0], error
        if missed := int((~(errors <= tolerance)).sum()):
            logger.warning(
                "inversion: %d of %d images do not come back within a mean squared error of %g (the worst: %.2g); "
                "train for longer, or take more steps", missed, len(errors), tolerance, float(errors.max()),
            )  # fmt: skip
        return x_T, decoded

    def _in_batches(
        self, run: Callable[..., tuple[Tensor, ...]], network: nn.Module, images: Tensor, *codes: Tensor
    ) -> list[Tensor]:
        """``run`` over at most ``batch_size`` images at once; of volumes for a 2D network, over their slices."""
        is_sliced = images.ndim == getattr(network, "spatial_dims", images.ndim - 2) + 3
        _check_inputs(images, codes, is_sliced)
        if network.training:
            raise ConfigError("the network is in training mode, where it is not the same twice; call network.eval()")
        inputs = [to_slices(tensor) for tensor in (images, *codes)] if is_sliced else [images, *codes]
        batches = zip(*(tensor.split(self.batch_size) for tensor in inputs), strict=True)
        outputs = [torch.cat(parts) for parts in zip(*(run(*batch) for batch in batches), strict=True)]
        return [from_slices(output, images.shape[-1]) for output in outputs] if is_sliced else outputs


def _check_inputs(images: Tensor, codes: tuple[Tensor, ...], is_sliced: bool) -> None:
    if not images.is_floating_point():
        raise ConfigError(f"the images are {images.dtype}; give floating-point numbers in the model's range")
    if images.numel() == 0:
        raise ConfigError(f"the images have the shape {tuple(images.shape)}: there is nothing in them")
    if not all(tensor.isfinite().all() for tensor in (images, *codes)):
        raise ConfigError("the images or codes hold values that are not finite; leave these cases out")
    axes, first = ("(B, D, Z)", (images.shape[0], images.shape[-1])) if is_sliced else ("(B, Z)", images.shape[:1])
    for z_sem in codes:
        if z_sem.ndim != len(first) + 1 or tuple(z_sem.shape[:-1]) != tuple(first):
            raise ConfigError(
                f"z_sem has the shape {tuple(z_sem.shape)}: with images or codes of shape {tuple(images.shape)} it "
                f"must be {axes} as encode gives it"
            )


def _precision(network: nn.Module) -> torch.dtype:
    """The network's own: it is asked in it, while solvers compute in float32 at least."""
    return next(network.parameters(), torch.empty(0)).dtype


def _mean_squares(differences: Tensor) -> Tensor:
    """(B,) of (B, ...)."""
    return differences.square().flatten(1).mean(dim=1)


def _denoiser(network: nn.Module, z_sem: Tensor) -> Denoiser:
    """The network with its z_sem bound."""
    dtype = _precision(network)
    z_sem = z_sem.to(dtype)
    return lambda x, t: network(x.to(dtype), t, z_sem)
