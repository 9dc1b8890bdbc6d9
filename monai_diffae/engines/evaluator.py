"""Validation with fixed noise and noise levels, so that runs can be compared; with each image's z_sem and another's."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor

from monai_diffae.diffusion import as_schedule
from monai_diffae.engines.precision import DeviceSettings, Precision, autocast


class LossEvaluator(SupervisedEvaluator):
    """The base of our evaluators: autocast on any device, and losses, of which the lowest is the best."""

    def __init__(self, *, precision: Precision = "auto", **kwargs: Any) -> None:
        super().__init__(**{"decollate": False, "metric_cmp_fn": operator.lt, **kwargs})
        settings = DeviceSettings.of(self.state.device, precision)
        self.dtype, self.non_blocking = settings.dtype, settings.non_blocking


class DiffusionEvaluator(LossEvaluator):
    """Evaluates the denoising loss of a diffusion autoencoder, with a :class:`~monai_diffae.engines.FixedPrepareBatch`.

    Its output per batch: ``loss`` (B,), the squared error with each image's own z_sem, and ``loss_other`` (B,), the
    squared error with the z_sem of the previous image (for the first image: of the last). Their ratio shows whether the
    decoder uses z_sem (:class:`~monai_diffae.metrics.ZSemUsage`): at 1, it ignores z_sem. Other arguments are those of
    ``monai.engines.SupervisedEvaluator``.
    """

    def __init__(self, *, schedule: Scheduler, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schedule = as_schedule(schedule).to(self.state.device)
        self._previous_z_sem: Tensor | None = None
        self.add_event_handler(Events.STARTED, self._forget_previous)

    def _forget_previous(self) -> None:
        self._previous_z_sem = None

    def _z_sem_of_previous_images(self, z_sem: Tensor) -> Tensor:
        # The previous image may be in the previous batch. So the batch size does not matter, and may be 1.
        before = self._previous_z_sem
        if before is None:  # the last image counts as the one before the first
            loader: Any = self.data_loader
            *_, last = iter(loader.sampler)
            batch = loader.collate_fn([loader.dataset[last]])
            _, _, _, kwargs = self.prepare_batch(batch, self.state.device, self.non_blocking, **self.to_kwargs)
            before = self.network.encode(kwargs["condition"])  # type: ignore[operator]
        self._previous_z_sem = z_sem[-1:]
        return torch.cat([before.to(z_sem.dtype), z_sem[:-1]])

    @torch.no_grad()
    def _iteration(self, engine: SupervisedEvaluator, batchdata: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.network.eval()
        with autocast(self.state.device, self.dtype):
            images, target, args, kwargs = engine.prepare_batch(
                batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
            )
            z_sem = self.network.encode(kwargs.pop("condition"))  # type: ignore[operator]
            own = self.inferer(images, self.network, *args, **kwargs, condition=z_sem)
            other = self.inferer(images, self.network, *args, **kwargs, condition=self._z_sem_of_previous_images(z_sem))
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        output = {"loss": _squared_error(own, target), "loss_other": _squared_error(other, target)}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return output


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    return (output.float() - target).square().flatten(1).mean(dim=1)
