"""The running figures of a training, for progress bar, curves and tracking."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines import Workflow

from monai_diffae.engines.device_settings import send
from monai_diffae.engines.trainer import TrainingEvents


@dataclass(frozen=True)
class Statistics:
    """Figures of the steps since the last report.

    Attributes:
        step: training steps (batches) since the training began.
        images_seen: images shown to the network since the training began, on all ranks.
        images_per_s: speed of reading and training, without validation.
        loss: mean over the reported steps and all ranks.
        learning_rate: current learning rate.
        seconds_left: time to the end of the training at this speed, without validation.
    """

    step: int
    images_seen: int
    images_per_s: float
    loss: float
    learning_rate: float
    seconds_left: float


class RunningStatistics:
    """Ignite handler: every ``every`` steps, store :class:`Statistics` in ``engine.state.statistics``.

    The loss is read from the device only then, so that a GPU does not have to wait at each step.

    Args:
        images_per_step: the batch size times the number of ranks.
        optimizer: the optimiser whose learning rate is reported.
        every: steps between two reports.
    """

    def __init__(self, images_per_step: int, optimizer: torch.optim.Optimizer, every: int = 20) -> None:
        self.images_per_step = images_per_step
        self.optimizer = optimizer
        self.every = every
        self._step_started = 0.0

    def attach(self, engine: Workflow) -> None:
        """Register with a :class:`~monai_diffae.engines.ResumableTrainer`.

        What is not reported yet is in ``engine.state.unreported``, which checkpoints keep.
        """
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_step)

    def _start(self, engine: Workflow) -> None:
        if not engine.state.iteration or getattr(engine.state, "unreported", None) is None:
            engine.state.unreported = _nothing()

    def _start_step(self) -> None:
        self._step_started = time.perf_counter()

    def _end_step(self, engine: Workflow) -> None:
        state, sums = engine.state, engine.state.unreported
        loss = state.output[0]["loss"]
        sums["loss"] = send(sums["loss"], loss.device) + loss
        sums["steps"] += 1
        is_last_of_epoch = state.iteration % state.epoch_length == 0
        is_due = state.iteration % self.every == 0 or is_last_of_epoch or engine.ends_after_step  # type: ignore[attr-defined]
        mean_loss = _mean_loss(sums) if is_due else 0.0  # waits for the GPU, so it comes before the clock
        sums["seconds"] += time.perf_counter() - self._step_started
        if not is_due:
            return
        steps_per_s = sums["steps"] / max(sums["seconds"], 1e-9)
        state.statistics = Statistics(
            step=state.iteration,
            images_seen=state.iteration * self.images_per_step,
            images_per_s=steps_per_s * self.images_per_step,
            loss=mean_loss,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds_left=(state.max_epochs * state.epoch_length - state.iteration) / steps_per_s,
        )
        state.unreported = _nothing()
        engine.fire_event(TrainingEvents.STATISTICS)


def _nothing() -> dict[str, Any]:
    return {"seconds": 0.0, "steps": 0, "loss": torch.zeros(())}


def _mean_loss(sums: Mapping[str, Any]) -> float:
    total = idist.all_reduce(sums["loss"])  # all ranks report at the same steps
    return float(total) / (sums["steps"] * idist.get_world_size())
