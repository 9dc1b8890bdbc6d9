"""When to validate, and when to stop early."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler

logger = logging.getLogger(__name__)

PROBES_WITHOUT_GAIN, LEAST_GAIN = 4, 0.01  # probes, and by how much their best score must exceed the best before


class Validation(ValidationHandler):
    """MONAI's ValidationHandler, which also gives the evaluator the trainer's step and can stop the training early.

    Args:
        validator: the evaluator.
        interval: epochs between two validations.
        patience: stop after this many validations without a lower ``loss``; None: never stop early.
        max_minutes: stop at the next step once the training has taken this long, with all its validations and in all
            its runs if it was resumed; None: no limit.
    """

    def __init__(
        self,
        validator: Evaluator,
        interval: int = 1,
        patience: int | None = None,
        max_minutes: float | None = None,
    ) -> None:
        super().__init__(interval=interval, validator=validator)
        self.evaluator = validator
        self.patience = patience
        self.max_minutes = max_minutes
        self.best = math.inf
        self.validations_since_best = 0
        self.metrics: dict[str, float] = {}  # of the last validation, as far as they could be measured
        self.probe_scores: list[float] = []  # the mean over the labels, of each validation with probes
        self.has_reported_stall = False
        self._seconds_before, self._started_at = 0.0, time.monotonic()

    def attach(self, engine: Engine) -> None:
        """Validate every ``interval`` epochs, and always after the last step."""
        engine.add_event_handler(Events.STARTED, self._start_clock)
        engine.add_event_handler(Events.ITERATION_STARTED, self._end_if_time_is_over)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop_within_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate_if_due)

    def _start_clock(self) -> None:
        self._started_at = time.monotonic()

    def _end_if_time_is_over(self, engine: Engine) -> None:
        engine.ends_after_step = self.is_time_over  # type: ignore[attr-defined]

    def _stop_within_epoch(self, engine: Engine) -> None:
        is_last_of_epoch = engine.state.iteration % engine.state.epoch_length == 0  # type: ignore[operator]
        if engine.ends_after_step and not is_last_of_epoch and not engine.is_between_updates:  # type: ignore[attr-defined]
            self(engine)
            self._stop_for_time(engine)

    def _validate_if_due(self, engine: Engine) -> None:
        is_last = engine.state.epoch == engine.state.max_epochs
        is_cut = engine.ends_after_step and not is_last  # type: ignore[attr-defined]
        if engine.state.epoch % self.interval == 0 or is_last or is_cut:
            self(engine)
        if is_cut:
            self._stop_for_time(engine)

    def _stop_for_time(self, engine: Engine) -> None:
        state = engine.state
        logger.warning(
            "max_minutes: %.3g minutes are over at step %d of %d; the other steps are left out. To train "
            "further, resume with a larger max_minutes or none (--overrides max_minutes=null)",
            self.max_minutes, state.iteration, state.max_epochs * state.epoch_length,  # type: ignore[operator]
        )  # fmt: skip
        engine.terminate()

    def __call__(self, engine: Engine) -> None:
        """Validate, and end the training if the patience is exhausted."""
        state = engine.state
        self.evaluator.state.trainer_step = state.iteration
        is_last_step = state.iteration == state.max_epochs * state.epoch_length  # type: ignore[operator]
        self.evaluator.state.is_last = is_last_step or engine.ends_after_step  # type: ignore[attr-defined]
        super().__call__(engine)
        values = {name: float(value) for name, value in self.evaluator.state.metrics.items()}
        self.metrics = {name: value for name, value in values.items() if name == "loss" or not math.isnan(value)}
        self._follow_probes()
        loss = self.metrics["loss"]
        if loss < self.best:
            self.best, self.validations_since_best = loss, 0
            return
        self.validations_since_best += 1
        if self.is_patience_exhausted:
            logger.info("no lower validation loss in %d validations; the training stops early", self.patience)
            engine.terminate()

    def _follow_probes(self) -> None:
        """Log once that z_sem has stopped improving."""
        scores = [value for name, value in self.metrics.items() if name.startswith("probe_")]
        if not scores:
            return
        self.probe_scores.append(sum(scores) / len(scores))
        if has_stalled(self.probe_scores) and not self.has_reported_stall:
            self.has_reported_stall = True
            logger.info(
                "z_sem has stopped improving: in the last %d probes, the mean score was not above %.3f, which it had "
                "reached before; more epochs may still sharpen the images",
                PROBES_WITHOUT_GAIN, max(self.probe_scores[:-PROBES_WITHOUT_GAIN]) + LEAST_GAIN,
            )  # fmt: skip

    @property
    def is_patience_exhausted(self) -> bool:
        """Whether there were ``patience`` validations without a lower loss."""
        return self.patience is not None and self.validations_since_best >= self.patience

    @property
    def is_time_over(self) -> bool:
        """Whether the training has taken ``max_minutes``; all processes of a distributed training agree."""
        return self.max_minutes is not None and bool(idist.all_reduce(self._seconds, "MAX") >= 60 * self.max_minutes)

    @property
    def stopping_key(self) -> str | None:
        """The key of the configuration whose limit has stopped the training; None: no limit is reached."""
        if self.is_patience_exhausted:
            return "early_stop_patience"
        return "max_minutes" if self.is_time_over else None

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started_at

    def state_dict(self) -> dict[str, Any]:
        """The state of early stopping, the time, and the last metrics."""
        return {
            "best": self.best, "validations_since_best": self.validations_since_best, "seconds": self._seconds,
            "metrics": self.metrics, "probe_scores": self.probe_scores,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of early stopping, and the last metrics."""
        self.metrics, self.probe_scores = state["metrics"], list(state["probe_scores"])
        self.has_reported_stall = any(has_stalled(self.probe_scores[:n]) for n in range(len(self.probe_scores) + 1))
        self.best, self.validations_since_best = state["best"], state["validations_since_best"]
        self._seconds_before = state["seconds"]
        self._start_clock()


def has_stalled(scores: Sequence[float]) -> bool:
    """Whether the last 4 probes were no better, by 0.01, than the best one before them.

    Example:
        >>> has_stalled([0.6, 0.7, 0.8, 0.8, 0.79, 0.8, 0.805]), has_stalled([0.6, 0.7, 0.8, 0.81, 0.82, 0.83])
        (True, False)
    """
    before, last = scores[:-PROBES_WITHOUT_GAIN], scores[-PROBES_WITHOUT_GAIN:]
    return bool(before) and max(last) < max(before) + LEAST_GAIN
