"""Inference with a diffusion autoencoder: encode, invert, decode and reconstruct; and the forward pass of training."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from inspect import Parameter, Signature, signature
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from monai_diffae import diffusion
from monai_diffae.diffusion import DecodingSettings, Denoiser, Predictor, StepCallback, as_schedule
from monai_diffae.diffusion.monai_schedulers import MonaiSchedule
from monai_diffae.diffusion.noise import seed_of
from monai_diffae.errors import ConfigError
from monai_diffae.networks import DenoisingUNet, DiffusionAutoencoder
from monai_diffae.networks.first_stage import FirstStage
from monai_diffae.networks.kernels import exact_convolutions
from monai_diffae.policies import check_choice

ReconstructionMode = Literal["x_T", "z_sem"]

logger = logging.getLogger(__name__)


def to_slices(volumes: Tensor) -> Tensor:
    """The slices of volumes along the last axis: (B, C, H, W, D) -> (B * D, C, H, W); codes (B, D, Z) -> (B * D, Z)."""
    return volumes.movedim(-1, 1).flatten(0, 1) if volumes.ndim > 3 else volumes.flatten(0, 1)


def from_slices(slices: Tensor, num_slices: int) -> Tensor:
    """The inverse of :func:`to_slices`; ``num_slices`` is D."""
    stacked = slices.unflatten(0, (-1, num_slices))
    return stacked.movedim(1, -1) if slices.ndim > 2 else stacked


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

    def decode(self, predict: Predictor, x_T: Tensor, callback: StepCallback | None = None) -> Tensor:
        """x_0 (B, C, *S) of x_T; ``predict`` is :attr:`unet` with its z_sem bound, and without clipping.

        x_0 is clipped to the schedule's range after the last step only: before it, a step does not aim at x_0.
        """
        x_0 = diffusion.ddim(predict, x_T, self.levels, callback=callback)
        clip_range = predict.schedule.clip_range
        return x_0 if clip_range is None else x_0.clamp(*clip_range)


class DiffusionAutoencoderInferer(Inferer):
    """Encodes, inverts and decodes images. Calling it is the forward pass of training, or a reconstruction.

    With a 2D network, images may also be volumes (B, C, H, W, D). They are processed slice by slice along the last
    axis, and z_sem is (B, D, Z).

    With a first stage, the network works on latents: the methods take and return images as usual, and x_T is the noise
    of the latents. Latents have no bounds, so the schedule's ``clip_range`` should be None.

    Args:
        schedule: the noise schedule that the network is trained with, ours or one of MONAI's schedulers
            (:func:`~monai_diffae.diffusion.as_schedule`).
        first_stage: maps images to the latents that the network works on; None: the network works on images.
        fast_decoder: a decoder with few evaluations, trained from the network's own; None: there is none.
        **settings: fields of :class:`~monai_diffae.diffusion.DecodingSettings`, such as ``steps`` and ``solver``.

    Raises:
        ConfigError: a name is unknown, the schedule has fewer levels than steps, or latents would be clipped.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> from monai_diffae.networks import build_autoencoder
        >>> network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
        >>> inferer = DiffusionAutoencoderInferer(DiffusionSchedule(), steps=5)
        >>> images = torch.rand(2, 1, 16, 16) * 2 - 1
        >>> inferer.reconstruct(images, network.eval(), mode="x_T").shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        schedule: Scheduler,
        *,
        first_stage: FirstStage | None = None,
        fast_decoder: FastDecoder | None = None,
        **settings: Any,
    ) -> None:
        schedule = as_schedule(schedule)
        self._parts = {"schedule": schedule, "first_stage": first_stage, "fast_decoder": fast_decoder}
        self.settings = chosen = DecodingSettings(**settings)
        self.schedule, self.first_stage, self.fast_decoder = schedule, first_stage, fast_decoder
        self.solver = diffusion.find_solver(chosen.solver)
        facts = diffusion.solver_facts(self.solver)
        self.solver_steps = facts.steps(chosen.steps)
        self.steps = facts.evaluations(self.solver_steps)
        self.invert_steps = self.steps if chosen.invert_steps is None else chosen.invert_steps
        self.inversion_order = facts.inversion_order
        self.clip_range = schedule.clip_range if chosen.clip else None
        if first_stage is not None and self.clip_range is not None:
            raise ConfigError(
                f"clip_range is {list(self.clip_range)}; a first stage's latents have no bounds: set it to null"
            )
        num_levels = schedule.num_train_timesteps
        most = {"steps": facts.evaluations(num_levels)}
        if chosen.inversion == "ddim":
            most["invert_steps"] = num_levels
        for name, limit in most.items():
            if getattr(self, name) > limit:
                number = getattr(chosen, name) or self.steps
                raise ConfigError(
                    f"{name} is {number}; it must be between 1 and {limit}, as the schedule has {num_levels} levels"
                )
        schedule.inference_timesteps(self.solver_steps, chosen.spacing)  # raises an error for an unknown spacing
        if chosen.solver == "scheduler":
            if isinstance(schedule, MonaiSchedule):
                schedule.warn_of_own_steps(self.solver_steps)
            else:
                logger.warning("solver: scheduler is ddim here, as only MONAI's schedulers have a step of their own")

    def __call__(  # type: ignore[override]
        self,
        inputs: Tensor,
        network: nn.Module,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        condition: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """The forward pass of training; without noise, timesteps and condition, the near-exact reconstruction.

        MONAI's applications, such as MONAI Label, call an inferer with ``inputs`` and ``network`` only.

        Args:
            inputs: clean images x0 (B, C, *S) in the model's range; in training with a first stage, their latents.
            network: a :class:`~monai_diffae.networks.DiffusionAutoencoder`.
            noise: eps (B, C, *S).
            timesteps: t (B,).
            condition: z_sem (B, D), or the clean images (B, C', *S) to encode.

        Returns:
            The network's output (B, C, *S) for x_t drawn from q(x_t | inputs), or what :meth:`reconstruct` returns.
        """
        if noise is None and timesteps is None and condition is None:
            # MONAI Label passes a MetaTensor, which would track every operation
            return self.reconstruct(inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs, network)
        if noise is None or timesteps is None or condition is None:
            raise ConfigError("training needs noise, timesteps and condition; give all of them, or none to reconstruct")
        x_t = self.schedule.q_sample(inputs, noise, timesteps)
        output: Tensor = network(x_t, timesteps, condition)
        return output

    @property
    def decoding_evaluations(self) -> int:
        """Network evaluations of a decoding, by the chosen decoder."""
        return self.fast_decoder.steps if self.settings.decoder == "fast" and self.fast_decoder else self.steps

    @torch.no_grad()
    def encode(self, images: Tensor, network: nn.Module) -> Tensor:
        """z_sem (B, Z) of images (B, C, *S), float32; for volumes and a 2D network, (B, D, Z)."""

        def run(images: Tensor) -> tuple[Tensor]:
            z_sem: Tensor = network.encode(self._from_images(images).to(_precision(network)))  # type: ignore[operator]
            return (z_sem.float(),)

        (z_sem,) = self._in_batches(run, network, images)
        return z_sem

    def replace(self, **arguments: Any) -> "DiffusionAutoencoderInferer":
        """Return an inferer with other values for some of the constructor's arguments.

        Example:
            >>> from monai_diffae.diffusion import DiffusionSchedule
            >>> inferer = DiffusionAutoencoderInferer(DiffusionSchedule(), steps=20)
            >>> inferer.replace(steps=5).invert_steps
            5
        """
        return type(self)(**{**self._parts, **vars(self.settings), **arguments})

    @torch.no_grad()
    def invert(
        self, images: Tensor, network: nn.Module, z_sem: Tensor | None = None, callback: StepCallback | None = None
    ) -> Tensor:
        """The stochastic code x_T of images, (B, C, *S) in float32 or better.

        It is not checked whether x_T decodes to the image; :meth:`round_trip` checks this.

        Args:
            images: (B, C, *S) in the model's range.
            network: the trained autoencoder.
            z_sem: (B, Z); None: computed from the images.
            callback: called after each step; with more images than ``batch_size``, after each step of each batch.

        Returns:
            x_T, in the shape of the images; with a first stage, in the shape that :meth:`x_T_shape` gives.
        """

        def run(images: Tensor, z_sem: Tensor) -> tuple[Tensor]:
            return (self._inverted(self._from_images(images), self._predictor(network, z_sem), callback),)

        z_sem = self.encode(images, network) if z_sem is None else z_sem
        (x_T,) = self._in_batches(run, network, images, z_sem)
        return x_T

    @torch.no_grad()
    def decode(self, z_sem: Tensor, network: nn.Module, x_T: Tensor, callback: StepCallback | None = None) -> Tensor:
        """Images (B, C, *S), in float32 or better, from z_sem and x_T.

        Args:
            z_sem: (B, Z).
            network: the trained autoencoder.
            x_T: noise, or the stochastic codes that :meth:`invert` returns.
            callback: called after each step; with more images than ``batch_size``, after each step of each batch.
        """

        def run(x_T: Tensor, z_sem: Tensor) -> tuple[Tensor]:
            return (self.decode_with_gradient(z_sem, network, x_T, callback),)

        (images,) = self._in_batches(run, network, x_T, z_sem)
        return images

    def decode_with_gradient(
        self, z_sem: Tensor, network: nn.Module, x_T: Tensor, callback: StepCallback | None = None
    ) -> Tensor:
        """As :meth:`decode`, for all images at once, and with the gradient with respect to z_sem."""
        if self.settings.decoder == "fast":
            return self._to_images(self._decoded_fast(x_T, z_sem, callback))
        return self._to_images(self._decoded(x_T, self._predictor(network, z_sem), callback))

    @torch.no_grad()
    def round_trip(
        self,
        images: Tensor,
        network: nn.Module,
        z_sem: Tensor | None = None,
        callback: StepCallback | None = None,
        max_evaluations: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Invert images and decode them again; refine x_T of those images that are not reproduced.

        If the reconstruction of an image differs by more than ``invert_tolerance``, the image is inverted again on its
        own, with about a hundred evaluations or more (:func:`~monai_diffae.diffusion.refined_inversion`). If it still
        differs by more, a warning is logged.

        Args:
            images: (B, C, *S) in the model's range.
            network: the trained autoencoder.
            z_sem: (B, Z); None: computed from the images.
            callback: called after each step of inversion and of decoding, but not during a refinement.
            max_evaluations: most network evaluations for refining one image; None: no limit, 0: no refinement. They
                bound its time whatever the machine. If they do not suffice, the best x_T so far is returned, and the
                warning is logged.

        Returns:
            x_T, and the reconstruction (B, C, *S).
        """

        def run(images: Tensor, z_sem: Tensor) -> tuple[Tensor, Tensor]:
            x_0, predict = self._from_images(images), self._predictor(network, z_sem)
            x_T = self._inverted(x_0, predict, callback)
            if self.settings.decoder == "exact":
                decoded = self._decoded(x_T, predict, callback)
                x_T, decoded = self._refined((x_0, z_sem), x_T, decoded, network, max_evaluations)
                return x_T, self._to_images(decoded)
            decoded = self._decoded_fast(x_T, z_sem, callback)
            for i in self._inexact(decoded, x_0):  # the exact decoder tells whether x_T is the reason
                one = slice(i, i + 1)
                exact = self._decoded(x_T[one], self._predictor(network, z_sem[one]))
                x_T[one], _ = self._refined((x_0[one], z_sem[one]), x_T[one], exact, network, max_evaluations)
                decoded[one] = self._decoded_fast(x_T[one], z_sem[one])
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
        """Encode and decode images (B, C, *S).

        Args:
            images: (B, C, *S) in the model's range.
            network: the trained autoencoder.
            mode: ``x_T``: near-exact, by :meth:`round_trip` with each image's own x_T; ``z_sem``: from z_sem and noise,
                which keeps what z_sem describes and draws other details.
            x_T: the noise for mode ``z_sem``; None: drawn at random.
            callback: called after each step of inversion and of decoding.

        Raises:
            ConfigError: the mode is unknown, x_T has the wrong shape, or x_T is given in mode ``x_T``.
        """
        check_choice("mode", mode, ReconstructionMode)
        if mode == "x_T":
            if x_T is not None:
                raise ConfigError("x_T was given, but mode 'x_T' inverts each image's own; use mode 'z_sem', or decode")
            return self.round_trip(images, network, callback=callback)[1]
        shape = (images.shape[0], *self.x_T_shape(images.shape[1:]))
        if x_T is None:
            x_T = torch.randn(shape, device=images.device)
        if x_T.shape != shape:
            raise ConfigError(f"x_T has the shape {tuple(x_T.shape)}; with these images it must be {shape}")
        return self.decode(self.encode(images, network), network, x_T, callback)

    def x_T_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of x_T for one image of shape (C, *S): the same; with a first stage, that of its latents."""
        return tuple(image_shape) if self.first_stage is None else self.first_stage.latent_shape(image_shape)

    def _from_images(self, images: Tensor) -> Tensor:
        return images if self.first_stage is None else self.first_stage.encode(images)

    def _to_images(self, x_0: Tensor) -> Tensor:
        return x_0 if self.first_stage is None else self.first_stage.decode(x_0)

    def _predictor(self, network: nn.Module, z_sem: Tensor) -> Predictor:
        return Predictor(_denoiser(network, z_sem), self.schedule, self.clip_range)

    def _inverted(self, x_0: Tensor, predict: Predictor, callback: StepCallback | None) -> Tensor:
        """x_T of x_0, an image or its latents."""
        if self.settings.eta > 0:
            raise ConfigError(
                f"eta is {self.settings.eta:g}, and new noise cannot be inverted; use eta 0 for a scan's own x_T"
            )
        if self.settings.inversion == "ddim":
            levels = self.schedule.paper_inversion_levels(self.invert_steps, self.settings.spacing)
            return diffusion.ddim(predict, x_0, levels, callback=callback)
        return diffusion.implicit_inversion(
            predict,
            x_0,
            self.schedule.inversion_levels(min(self.solver_steps, self.invert_steps), self.settings.spacing),
            num_evaluations=self.invert_steps,
            order=self.inversion_order,
            callback=callback,
        )

    def _decoded(self, x_T: Tensor, predict: Predictor, callback: StepCallback | None = None) -> Tensor:
        """x_0, an image or its latents, of x_T."""
        levels = self.schedule.decoding_levels(self.solver_steps, self.settings.spacing)
        if self.settings.eta > 0:
            seeds = [seed_of("eta", each.detach().cpu().numpy().tobytes().hex()) for each in x_T]
            noise = [torch.Generator().manual_seed(seed) for seed in seeds]  # the same in every batch and process
            return diffusion.ddim(predict, x_T, levels, callback=callback, eta=self.settings.eta, generator=noise)
        return self.solver(predict, x_T, levels, callback=callback)

    def _decoded_fast(self, x_T: Tensor, z_sem: Tensor, callback: StepCallback | None = None) -> Tensor:
        """The same by the fast decoder."""
        if self.fast_decoder is None:
            raise ConfigError("decoder is 'fast', but there is no fast decoder; train it with monai-diffae distill")
        predict = Predictor(_denoiser(self.fast_decoder.unet, z_sem), self.schedule)
        return self.fast_decoder.decode(predict, x_T, callback)

    def _refined(
        self,
        target: tuple[Tensor, Tensor],
        x_T: Tensor,
        decoded: Tensor,
        network: nn.Module,
        max_evaluations: int | None,
    ) -> tuple[Tensor, Tensor]:
        """x_T and its decoded x_0; images too far from ``target`` (x_0 and z_sem) are inverted again, one by one."""
        x_0, z_sem = target
        tolerance = self.settings.invert_tolerance
        inexact = self._inexact(decoded, x_0)
        if tolerance is None or not inexact:
            return x_T, decoded
        x_T, decoded, errors = x_T.clone(), decoded.clone(), _mean_squares(decoded - x_0)
        levels = self.schedule.inversion_levels(self.solver_steps, self.settings.spacing)
        for i in inexact:
            predict, one = self._predictor(network, z_sem[i : i + 1]), x_0[i : i + 1]
            refined = diffusion.refined_inversion(
                predict,
                partial(self._decoded, predict=predict),
                one,
                levels,
                tolerance=tolerance,
                order=self.inversion_order,
                max_evaluations=max_evaluations,
                decode_evaluations=self.steps,
            )
            if refined is None:  # there are too few evaluations for a refinement
                continue
            new_x_T, new_decoded = refined
            if (error := _mean_squares(new_decoded - one)[0]) < errors[i]:
                x_T[i], decoded[i], errors[i] = new_x_T[0], new_decoded[0], error
        if num_inexact := int((~(errors <= tolerance)).sum()):
            logger.warning(
                "inversion: %d of %d images are not reproduced within a mean squared error of %g (largest: %.2g); "
                "use more steps",
                num_inexact,
                len(errors),
                tolerance,
                float(errors.max()),
            )
        return x_T, decoded

    def _inexact(self, decoded: Tensor, x_0: Tensor) -> list[int]:
        """The images whose decoded x_0 differs by more than the tolerance; none if nothing is refined."""
        if self.settings.invert_tolerance is None or self.settings.inversion == "ddim":
            return []
        is_exact = _mean_squares(decoded - x_0) <= self.settings.invert_tolerance  # false for NaN
        return (~is_exact).nonzero().flatten().tolist()

    def _in_batches(
        self, run: Callable[..., tuple[Tensor, ...]], network: nn.Module, images: Tensor, *codes: Tensor
    ) -> list[Tensor]:
        """Call ``run`` with at most ``batch_size`` images at once; with slices if a 2D network is given volumes."""
        is_sliced = images.ndim == getattr(network, "spatial_dims", images.ndim - 2) + 3
        _check_inputs(images, codes, is_sliced)
        if network.training:
            raise ConfigError("the network is in training mode, where its output is random; call network.eval()")
        inputs = [to_slices(tensor) for tensor in (images, *codes)] if is_sliced else [images, *codes]
        parts = []
        with exact_convolutions():
            for batch in zip(*(tensor.split(self.settings.batch_size) for tensor in inputs), strict=True):
                parts.append(run(*batch))
        outputs = [torch.cat(part) for part in zip(*parts, strict=True)]
        return [from_slices(output, images.shape[-1]) for output in outputs] if is_sliced else outputs


# ``help`` and checks of configurations see each setting as a keyword argument.
_PARAMETERS = [
    *(each for name, each in signature(DiffusionAutoencoderInferer).parameters.items() if name != "settings"),
    *(Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default) for each in fields(DecodingSettings)),
]
DiffusionAutoencoderInferer.__signature__ = Signature(_PARAMETERS)  # type: ignore[attr-defined]


def _check_inputs(images: Tensor, codes: tuple[Tensor, ...], is_sliced: bool) -> None:
    if not all(tensor.isfinite().all() for tensor in (images, *codes)):
        raise ConfigError("the images or codes hold values that are not finite; exclude these cases")
    axes, first = ("(B, D, Z)", (images.shape[0], images.shape[-1])) if is_sliced else ("(B, Z)", images.shape[:1])
    for z_sem in codes:
        if z_sem.ndim != len(first) + 1 or tuple(z_sem.shape[:-1]) != tuple(first):
            raise ConfigError(
                f"z_sem has the shape {tuple(z_sem.shape)}; for images or codes of shape {tuple(images.shape)} it "
                f"must have the shape {axes} that encode returns"
            )


def _precision(network: nn.Module) -> torch.dtype:
    """The network's own dtype: its inputs are converted to it, while solvers compute in float32 or better."""
    return next(network.parameters(), torch.empty(0)).dtype


def _mean_squares(differences: Tensor) -> Tensor:
    """The mean square (B,) of each of (B, ...)."""
    return differences.square().flatten(1).mean(dim=1)


def _denoiser(network: nn.Module, z_sem: Tensor) -> Denoiser:
    """The network as a function of x_t and t only. Our UNet computes what depends on z_sem alone just once."""
    dtype = _precision(network)
    z_sem = z_sem.to(dtype)
    unet = network.unet if isinstance(network, DiffusionAutoencoder) else network
    if not isinstance(unet, DenoisingUNet):
        return lambda x, t: network(x.to(dtype), t, z_sem)
    projections = unet.projections(z_sem)
    return lambda x, t: unet.denoise(x.to(dtype), t, projections)
