"""Training: MONAI's SupervisedTrainer for long trainings of diffusion models, its learning rate, and its processes."""

import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import ignite.distributed as idist
import torch
from ignite.engine import EventEnum, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.networks.schedulers.scheduler import Scheduler
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from monai_diffae.data.progress import track
from monai_diffae.data.streamed import dead_worker
from monai_diffae.diffusion import as_schedule
from monai_diffae.engines.batches import StepBatchSampler
from monai_diffae.engines.precision import DeviceSettings, Precision, autocast
from monai_diffae.engines.prepare_batch import AutoencoderPrepareBatch
from monai_diffae.errors import ConfigError, DivergenceError
from monai_diffae.networks import FixedComponents
from monai_diffae.networks.kernels import reproducible_kernels
from monai_diffae.policies import check_choice

logger = logging.getLogger(__name__)

_MOST_NAMED, _LONGEST_ID = 3, 18  # cases of a batch in a message, and characters of their ids
_MOST_FITTED = 10_000  # training cases that fixed components are fitted to
_SMALLEST_SCALE = 1e-4  # for fp16 gradients, as in fairseq: a smaller scale is only needed after divergence


class TrainingEvents(EventEnum):
    """The events of a :class:`ResumableTrainer` beside those of Ignite and MONAI."""

    BEFORE_RUN = "before_run"  # Ignite reads the step at which to resume before it fires STARTED
    ALREADY_COMPLETE = "already_complete"  # fired instead of a run if nothing is left to do
    WEIGHTS_UPDATED = "weights_updated"
    SAVING = "saving"  # a checkpoint is about to be written
    STATISTICS = "statistics"  # engine.state.statistics has new figures from RunningStatistics


class ResumableTrainer(SupervisedTrainer):
    """The base of our trainers; a subclass computes the loss of each image.

    Beyond MONAI's trainer (1.6.1) it has autocast on any device (MONAI's is hard-coded to CUDA), with its gradient
    scaler in ``grad_scaler`` for checkpoints (MONAI resets ``scaler`` whenever it runs); gradient clipping; an error if
    the loss or a gradient is not finite; and a start at any step of the data
    (see :class:`~monai_diffae.engines.StepBatchSampler`).

    The loss and the norm of the gradients are copied from the device while it computes the next step, and checked
    before that step changes the weights, so that the device never waits for the host. With fp16, steps whose gradients
    overflow are skipped, and the next gradients are scaled down; training ends if the scale falls below 1e-4.

    Args:
        precision: ``auto`` (bf16 if the hardware has it, else fp32), ``fp32``, ``bf16`` or ``fp16``.
        max_grad_norm: larger gradients are scaled down to this norm; None: no clipping.
        channels_last: use this memory format for network and images. On a CPU, a step then takes 17 % (bf16) and 14 %
            (float32) less time in 2D, 7 % less with bf16 in 3D, and the same with float32 in 3D.
        kwargs: arguments of ``monai.engines.SupervisedTrainer``. ``loss_function`` must not reduce.
    """

    def __init__(
        self,
        *,
        precision: Precision = "auto",
        max_grad_norm: float | None = 1.0,
        channels_last: bool = True,
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("amp", False):
            raise ConfigError("amp: cannot be used; set precision")
        if getattr(kwargs.get("loss_function"), "reduction", "none") != "none":
            raise ConfigError("loss_function: must not reduce; set its reduction to none")
        kwargs["event_names"] = [TrainingEvents, *(kwargs.get("event_names") or [])]
        super().__init__(**{"decollate": False, "optim_set_to_none": True, **kwargs})
        self.settings = DeviceSettings.of(self.state.device, precision)
        self.dtype = self.settings.dtype
        self.non_blocking = self.settings.non_blocking
        self.max_grad_norm = max_grad_norm
        self.memory_format = memory_format(self.network, channels_last)
        lay_out(self.network, self.memory_format)
        # fp16 gradients underflow without a scaler; a disabled scaler changes nothing.
        self.grad_scaler = torch.amp.GradScaler(self.state.device.type, enabled=self.dtype == torch.float16)
        self._last_step: StepFigures | None = None  # not checked yet; the device may still be computing them
        self._reported: BaseException | None = None
        # Ignite logs an exception twice before raising it
        self.logger.addFilter(lambda record: "terminating due to exception" not in record.getMessage())
        self.add_event_handler(Events.STARTED, self._start_data_at_step)

    def run(self) -> None:  # type: ignore[override]
        """Train up to ``max_epochs``.

        A handler of ``BEFORE_RUN`` can set the step from which to train, or ``is_complete`` if nothing is left to do. A
        handler that will end the training sets ``ends_after_step`` when a step starts, so that the step is reported.
        """
        self.is_complete = False
        self.ends_after_step = False
        self._last_step = None
        self.fire_event(TrainingEvents.BEFORE_RUN)
        if self.is_complete:
            self.fire_event(TrainingEvents.ALREADY_COMPLETE)
            return
        if idist.get_rank() == 0:
            logger.info("%s: %s, %s", self.settings.device, self.dtype, self.memory_format)
        try:
            with reproducible_kernels(self.settings.device):
                super().run()
        except BaseException as error:  # Ignite (0.5.5) does not report an exit that a handler of an epoch raises
            self._handle_exception(error)

    @property
    def is_between_updates(self) -> bool:
        """Whether there are accumulated gradients that no update has used yet; a checkpoint would lose them."""
        step = self.state.iteration % (self.state.epoch_length or 1)
        return step % self.accumulation_steps != 0

    def check_last_step(self) -> None:
        """Check that loss and gradients of the last step are finite; this waits for the device."""
        if self._last_step is not None:
            self._last_step.check()

    def _handle_exception(self, e: BaseException) -> None:
        # Ignite leaves raising to the handlers, so the first one that raises would prevent the others. It calls this
        # method twice, in the epoch's loop and in the run's.
        if e is not self._reported:
            self._reported = e
            self._fire_event(Events.EXCEPTION_RAISED, e)
        if dead := dead_worker(e):
            self._reported = dead
            raise dead from e
        raise e

    @property
    def _sampler(self) -> StepBatchSampler | None:
        sampler = getattr(self.data_loader, "batch_sampler", None)
        return sampler if isinstance(sampler, StepBatchSampler) else None

    def _start_data_at_step(self) -> None:
        if self._sampler is not None:
            self._sampler.start = self.state.iteration

    def _iteration(self, engine: SupervisedTrainer, batchdata: Mapping[str, Any]) -> list[dict[str, Any]]:  # type: ignore[override]
        if self._sampler is not None:
            batchdata = {**batchdata, "draws": self._sampler.draws(engine.state.iteration - 1)}
        step = (engine.state.iteration - 1) % engine.state.epoch_length
        first_of_group = step - step % self.accumulation_steps
        size_of_group = min(self.accumulation_steps, engine.state.epoch_length - first_of_group)

        self.network.train()
        if step == first_of_group:
            self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        loss = self.image_losses(batchdata).mean()
        figures = StepFigures(engine.state.iteration, batchdata.get("id", []), AsyncScalar(loss))
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        self.grad_scaler.scale(loss / size_of_group).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.check_last_step()  # the step before this one; the device is busy with this one
        if step + 1 == first_of_group + size_of_group:
            self._update_weights(figures)
        self._last_step = figures
        if step + 1 == engine.state.epoch_length:  # validation and a checkpoint follow
            self.check_last_step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return [{Keys.LOSS: loss.detach()}]  # as MONAI's decollated output, from which its handlers take the first

    @abstractmethod
    def image_losses(self, batchdata: Mapping[str, Any]) -> Tensor:
        """Compute the loss of each image (B,), float32, and fire ``FORWARD_COMPLETED`` after the network's pass.

        Args:
            batchdata: a batch of the loader; with a :class:`~monai_diffae.engines.StepBatchSampler`, its ``draws`` are
                the step's :class:`~monai_diffae.engines.StepDraws`.
        """

    def _update_weights(self, figures: "StepFigures") -> None:
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        if not self.grad_scaler.is_enabled():
            figures.grad_norm = AsyncScalar(norm)
            self._step_if_finite(norm)
            self.fire_event(TrainingEvents.WEIGHTS_UPDATED)
            return
        scale = self.grad_scaler.get_scale()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if (smaller := self.grad_scaler.get_scale()) >= scale:
            self.fire_event(TrainingEvents.WEIGHTS_UPDATED)
        elif smaller < _SMALLEST_SCALE:  # fp16 overflowed, and the step was skipped, as many before
            raise diverged(f"the fp16 gradients are not finite at step {self.state.iteration}, at any scale")

    def _step_if_finite(self, norm: Tensor) -> None:
        """Change the weights; with a fused optimiser only if the gradients are finite: its kernel reads the flag."""
        # The flag is the one that torch's gradient scaler sets for fp16. It saves a wait for the device.
        optimizer: Any = self.optimizer
        is_fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if is_fused:
            optimizer.found_inf = (~norm.isfinite()).float()
        optimizer.step()
        if is_fused:
            del optimizer.found_inf


class DiffusionTrainer(ResumableTrainer):
    """Trains a diffusion autoencoder, or another diffusion model, depending on ``inferer`` and ``prepare_batch``.

    Args:
        schedule: the noise schedule, which weights the loss of each noise level.
        predicted: components that the first numbers of z_sem should be, such as those of typical patches; they are
            fitted to the training images before the first step. None: no such loss.
        predicted_weight: the weight of their mean squared error, which is added to the loss.
        kwargs: arguments of :class:`ResumableTrainer`.
    """

    def __init__(
        self,
        *,
        schedule: Scheduler,
        predicted: FixedComponents | None = None,
        predicted_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.schedule = as_schedule(schedule).to(self.state.device)
        self.predicted = None if predicted is None else predicted.to(self.state.device).eval()
        self.predicted_weight = predicted_weight
        self.add_event_handler(Events.STARTED, self._fit_components)

    def image_losses(self, batchdata: Mapping[str, Any]) -> Tensor:
        """The loss of each image (B,), weighted by its noise level."""
        codes: list[Tensor] = []
        with autocast(self.state.device, self.dtype), _outputs(self._encoder if self.predicted else None, codes):
            images, target, args, kwargs = self.prepare_batch(
                batchdata, self.state.device, self.non_blocking, **self.to_kwargs
            )
            output = self.inferer(images.to(memory_format=self.memory_format), self.network, *args, **kwargs)
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        error = self.loss_function(output.float(), target).flatten(1).mean(dim=1)
        losses: Tensor = error * self.schedule.loss_weights(kwargs["timesteps"])
        if self.predicted is None:
            return losses
        components = self.predicted(kwargs["condition"]).float()
        distances = codes[0][:, : components.shape[1]].float() - components
        return losses + self.predicted_weight * distances.square().mean(dim=1)

    @property
    def _encoder(self) -> nn.Module | None:
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return getattr(network, "encoder", None)

    def _fit_components(self) -> None:
        """Fit fixed components to the training images, unless they were fitted before, e.g. in an earlier run."""
        parts = [part for part in (self._encoder, self.predicted) if isinstance(part, FixedComponents)]
        parts = [part for part in parts if not part.is_fitted]
        loader, prepare = cast(Any, self.data_loader), cast(AutoencoderPrepareBatch, self.prepare_batch)
        if not parts:
            return
        cases = loader.dataset.without_augmentation()

        def image(index: int) -> Tensor:
            alone = cases[index][prepare.encoder_key].as_subclass(Tensor)[None].to(self.state.device)
            return alone if prepare.first_stage is None else prepare.first_stage.encode(alone)

        indices = range(0, len(cases), -(-len(cases) // _MOST_FITTED))
        for part in parts:
            part.fit(image(index) for index in track(indices, "fitting components of typical patches"))


@contextmanager
def _outputs(network: nn.Module | None, found: list[Tensor]) -> Iterator[None]:
    """Keep what a network returns, or the first of several tensors."""
    if network is None:
        yield
        return

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, (tuple, list)) else output)

    handle = network.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


# -- figures of a step -------------------------------------------------------------------------------------------------


class AsyncScalar:
    """Asynchronous copy of a scalar to the CPU; the scalar must not change later."""

    def __init__(self, value: Tensor) -> None:
        # To pinned memory, from a GPU. On other devices nothing would tell when the number has arrived.
        self._value = value.detach().to("cpu", non_blocking=value.is_cuda)
        self._arrival = torch.cuda.current_stream(value.device).record_event() if value.is_cuda else None

    def read(self) -> float:
        """The number; waits until it has arrived."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return float(self._value)


@dataclass
class StepFigures:
    """Loss and norm of the gradients of one step, which must be finite."""

    step: int
    ids: Sequence[Any]  # of the cases of its batch
    loss: AsyncScalar
    grad_norm: AsyncScalar | None = None  # if the step updated the weights

    def check(self) -> None:
        """Check the figures. This waits for the device if it has not computed them yet."""
        if not math.isfinite(self.loss.read()):
            raise diverged(f"the loss is not finite at step {self.step} ({_named(self.ids)})")
        if self.grad_norm is not None and not math.isfinite(norm := self.grad_norm.read()):
            raise diverged(f"the gradients are not finite at step {self.step} (norm {norm:g})")


def diverged(what: str) -> DivergenceError:
    """The error that ends a training because ``what`` (with its step) is no longer finite."""
    return DivergenceError(f"{what}; the last checkpoint is kept. Use a lower learning_rate, or precision fp32")


def _named(ids: Sequence[Any]) -> str:
    names = ", ".join(str(name)[:_LONGEST_ID] for name in ids[:_MOST_NAMED]) or "unknown"
    others = len(ids) - _MOST_NAMED
    return f"cases {names} and {others} others" if others > 0 else f"cases {names}"


# -- learning rate -----------------------------------------------------------------------------------------------------


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer,
    kind: Literal["constant", "cosine"] = "constant",
    warmup_steps: int = 0,
    total_steps: int | None = None,
) -> LambdaLR:
    """A learning rate with linear warm-up, then constant or with cosine decay. It is stepped once per iteration.

    Args:
        optimizer: the optimiser, whose learning rate is the maximum.
        kind: ``constant``, or ``cosine`` down to 0 at ``total_steps``.
        warmup_steps: iterations from 0 to the maximum; at most a tenth of ``total_steps``.
        total_steps: iterations of the whole training; required for ``cosine``.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = learning_rate_schedule(optimizer, "cosine", warmup_steps=2, total_steps=22)
        >>> [round(schedule.lr_lambdas[0](step), 2) for step in (0, 1, 2, 12, 22)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    check_choice("lr_schedule", kind, ("constant", "cosine"))
    if kind == "cosine" and total_steps is None:
        raise ConfigError("lr_schedule 'cosine' needs total_steps; give it, or use 'constant'")
    if total_steps is not None:
        warmup_steps = min(warmup_steps, total_steps // 10)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if kind == "constant" or total_steps is None:
            return 1.0
        if step > total_steps:
            raise ConfigError(
                f"lr_schedule: 'cosine' ends at step {total_steps} with a learning rate of 0, but the training "
                "continues; in federated training, add configs/overlays/federated.json and set num_rounds to all rounds"
            )
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


# -- several processes -------------------------------------------------------------------------------------------------


def memory_format(network: nn.Module, channels_last: bool) -> torch.memory_format:
    """The memory format of a network's weights and images: channels last for 2D or 3D, else torch's usual one."""
    ranks = {parameter.ndim for parameter in network.parameters()}
    if not channels_last or {4, 5} <= ranks:
        return torch.contiguous_format
    return torch.channels_last_3d if 5 in ranks else torch.channels_last


def distributed(network: nn.Module, device: torch.device | str, channels_last: bool = True) -> DistributedDataParallel:
    """Wrap a network for a training by several processes, whose gradients are averaged.

    The weights get their memory format first. DistributedDataParallel (torch 2.13) assumes that it never changes: if it
    changes later, the averaged gradients are assigned to other weights of the same layer, without an error.
    """
    device = torch.device(device)
    network.to(memory_format=memory_format(network, channels_last))  # type: ignore[call-overload]
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Give a network's weights a memory format."""
    strides = [weight.stride() for weight in network.parameters()]
    network.to(memory_format=memory_format)  # type: ignore[call-overload]
    is_changed = strides != [weight.stride() for weight in network.parameters()]
    if is_changed and isinstance(network, DistributedDataParallel):
        raise ConfigError(
            "train#trainer#network: DistributedDataParallel would mix up the gradients, because channels_last changes "
            "the weights' layout; copy multi_gpu_train.json again with init, or use monai_diffae.engines.distributed"
        )
