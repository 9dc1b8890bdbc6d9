"""The progress of a training: a bar on a terminal, a line from time to time elsewhere."""

from __future__ import annotations

import logging
import math
import time

from ignite.engine import Events
from monai.engines import Workflow
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from monai_diffae.engines.trainer import TrainingEvents
from monai_diffae.handlers.metric_names import is_of_probes
from monai_diffae.handlers.statistics import Statistics
from monai_diffae.metrics import warn_if_unused

logger = logging.getLogger(__name__)


class TrainingProgress:
    """Ignite handler: show images seen, loss, images/s and time left, and the metrics of each validation.

    Probes are left out, since they log a line of their own.

    At the end, a warning is logged if the decoder hardly uses z_sem.

    Args:
        evaluator: the evaluator whose metrics are shown.
        plain_interval_s: seconds between two lines without a terminal.
        console: where to print; None: standard error.
    """

    def __init__(
        self, evaluator: Workflow | None = None, plain_interval_s: float = 20.0, console: Console | None = None
    ) -> None:
        self.evaluator = evaluator
        self.plain_interval_s = plain_interval_s
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._last_line = 0.0

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer and the evaluator; if the package's logger is quiet, only for the warning."""
        engine.add_event_handler(Events.COMPLETED, self._end)
        if logging.getLogger("monai_diffae").level >= logging.WARNING:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(TrainingEvents.STATISTICS, self._show)
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda _: self._stop())
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._show_validation)

    def _start(self, engine: Workflow) -> None:
        state = engine.state
        if self.console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), TextColumn("{task.percentage:.0f} %  {task.fields[text]}"))
            self._bar = Progress(*columns, console=self.console)
            total = state.max_epochs * state.epoch_length
            self._task = self._bar.add_task("", total=total, completed=state.iteration, text="")
            self._bar.start()

    def _show(self, engine: Workflow) -> None:
        text = describe(engine.state.statistics)
        if self._bar is not None:
            self._bar.update(self._task, completed=engine.state.iteration, text=text)
        elif time.monotonic() - self._last_line > self.plain_interval_s:
            self._last_line = time.monotonic()
            self.console.print(text, highlight=False, soft_wrap=True)

    def _show_validation(self, evaluator: Workflow) -> None:
        shown = {name: value for name, value in evaluator.state.metrics.items() if not is_of_probes(name)}
        undefined = "not defined, as there is no other image"  # of z_sem_usage, the only metric that can be NaN
        metrics = "  ".join(f"{k} {undefined if math.isnan(v) else format(v, '.4g')}" for k, v in shown.items())
        self.console.print(f"validation: {metrics}", highlight=False, soft_wrap=True)

    def _end(self, engine: Workflow) -> None:
        self._stop()
        if self.evaluator is not None and "z_sem_usage" in self.evaluator.state.metrics:
            warn_if_unused(self.evaluator.state.metrics["z_sem_usage"])

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def describe(statistics: Statistics) -> str:
    """One line about the state of a training.

    Example:
        >>> describe(Statistics(10, 320, 95.2, 0.1234, 1e-4, 75))
        '320 images  loss 0.1234  95.2 images/s  1:15 left'
    """
    minutes, seconds = divmod(round(statistics.seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    return (
        f"{statistics.images_seen:,} images  loss {statistics.loss:.4f}  "
        f"{statistics.images_per_s:.1f} images/s  {left} left"
    )
