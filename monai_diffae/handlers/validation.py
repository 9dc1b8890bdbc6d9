"""When to validate, and when to stop early."""

# tested in tests/bundles/test_resume.py

from __future__ import annotations

import logging
import math
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler

logger = logging.getLogger(__name__)


class Validation(ValidationHandler):
    """MONAI's ValidationHandler, which also gives the evaluator the trainer's step and can stop the training early.

    Args:
        validator: the evaluator.
        interval: epochs between two validations.
        patience: stop after this many validations without a lower ``loss``; None: never stop early.
    """

    def __init__(self, validator: Evaluator, interval: int = 1, patience: int | None = None) -> None:
        super().__init__(interval=interval, validator=validator)
        self.evaluator = validator
        self.patience = patience
        self.best = math.inf
        self.validations_since_best = 0
        self.metrics: dict[str, float] = {}  # of the last validation

    def attach(self, engine: Engine) -> None:
        """Validate every ``interval`` epochs, and always after the last one."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate_if_due)

    def _validate_if_due(self, engine: Engine) -> None:
        if engine.state.epoch % self.interval == 0 or engine.state.epoch == engine.state.max_epochs:
            self(engine)

    def __call__(self, engine: Engine) -> None:
        """Validate, and end the training if the patience is exhausted."""
        self.evaluator.state.trainer_step = engine.state.iteration
        super().__call__(engine)
        self.metrics = {name: float(value) for name, value in self.evaluator.state.metrics.items()}
        loss = self.metrics["loss"]
        if loss < self.best:
            self.best, self.validations_since_best = loss, 0
            return
        self.validations_since_best += 1
        if self.is_patience_exhausted:
            logger.info("no lower validation loss in %d validations; the training stops early", self.patience)
            engine.terminate()

    @property
    def is_patience_exhausted(self) -> bool:
        """Whether there were ``patience`` validations without a lower loss."""
        return self.patience is not None and self.validations_since_best >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """The state of early stopping, and the last metrics."""
        return {
            "best": self.best, "validations_since_best": self.validations_since_best, "metrics": self.metrics
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of early stopping, and the last metrics."""
        self.metrics = state.get("metrics", {})  # a checkpoint of an earlier version has none
        self.best, self.validations_since_best = state["best"], state["validations_since_best"]
