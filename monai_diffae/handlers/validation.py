"""When to validate, and when validation says to stop."""

from __future__ import annotations

import logging
import math
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler

logger = logging.getLogger(__name__)


class Validation(ValidationHandler):
    """MONAI's ValidationHandler that tells the evaluator the trainer's step, and can stop the training early.

    Args:
        validator: the evaluator.
        interval: epochs between two validations.
        patience: stop after this many validations without a lower ``loss``; None: never.
    """

    def __init__(self, validator: Evaluator, interval: int = 1, patience: int | None = None) -> None:
        super().__init__(interval=interval, validator=validator)
        self.evaluator = validator
        self.patience = patience
        self.best = math.inf
        self.validations_since_best = 0

    def attach(self, engine: Engine) -> None:
        """Validate every ``interval`` epochs, and after the last one whatever the interval."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate_if_due)

    def _validate_if_due(self, engine: Engine) -> None:
        if engine.state.epoch % self.interval == 0 or engine.state.epoch == engine.state.max_epochs:
            self(engine)

    def __call__(self, engine: Engine) -> None:
        """Validate; end the training if the patience is spent."""
        self.evaluator.state.trainer_step = engine.state.iteration
        super().__call__(engine)
        loss = self.evaluator.state.metrics["loss"]
        if loss < self.best:
            self.best, self.validations_since_best = loss, 0
            return
        self.validations_since_best += 1
        if self.is_patience_spent:
            logger.info("no lower validation loss in %d validations: stopping early", self.patience)
            engine.terminate()

    @property
    def is_patience_spent(self) -> bool:
        """Whether validation has said to stop."""
        return self.patience is not None and self.validations_since_best >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What early stopping remembers."""
        return {"best": self.best, "validations_since_best": self.validations_since_best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self.validations_since_best = state["best"], state["validations_since_best"]
