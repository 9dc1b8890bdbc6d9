"""When to validate and to stop early, and probes: what z_sem says about the labels of held-out patients."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler
from numpy.typing import NDArray
from torch import nn

from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cases import Case, label_names, spread
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.latents.probing.nested import QuickProbe

logger = logging.getLogger(__name__)

MOST_CASES = 1000  # of the training, and as many held-out ones
MOST_TARGETS = 8
_PROBE_METRICS = ("probe_", "low_of_probe_", "high_of_probe_", "neighbors_")  # beginnings of their names


def is_of_probes(metric: str) -> bool:
    """Whether a metric of a validation comes from probes."""
    return metric.startswith(_PROBE_METRICS)


class Validation(ValidationHandler):
    """MONAI's ValidationHandler, which also gives the evaluator the trainer's step and can stop the training early.

    Args:
        validator: the evaluator.
        interval: epochs between two validations.
        patience: stop after this many validations without a lower ``loss``; None: never stop early.
        max_minutes: stop at the next step once the training has taken this long, with all its validations and in all
            its runs if it was resumed; None: no limit.
    """

    validator: Evaluator

    def __init__(
        self, validator: Evaluator, interval: int = 1, patience: int | None = None, max_minutes: float | None = None
    ) -> None:
        super().__init__(interval=interval, validator=validator)
        self.patience = patience
        self.max_minutes = max_minutes
        self.best = math.inf
        self.validations_since_best = 0
        self.metrics: dict[str, float] = {}  # of the last validation, as far as they could be measured
        self._seconds_before, self._started_at = 0.0, time.monotonic()
        self._ended_at: float | None = None

    def attach(self, engine: Engine) -> None:
        """Validate every ``interval`` epochs, and always after the last step."""
        engine.add_event_handler(Events.STARTED, self._start_clock)
        engine.add_event_handler(Events.ITERATION_STARTED, self._end_if_time_is_over)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop_within_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate_if_due)
        engine.add_event_handler(Events.COMPLETED, self._stop_clock)

    def _start_clock(self) -> None:
        self._started_at, self._ended_at = time.monotonic(), None

    def _stop_clock(self) -> None:
        self._ended_at = time.monotonic()

    def _end_if_time_is_over(self, engine: Any) -> None:
        engine.ends_after_step = self.is_time_over

    def _stop_within_epoch(self, engine: Any) -> None:
        is_last_of_epoch = engine.state.iteration % engine.state.epoch_length == 0
        if engine.ends_after_step and not is_last_of_epoch and not engine.is_between_updates:
            self._stop_for_time(engine)

    def _validate_if_due(self, engine: Any) -> None:
        is_last = engine.state.epoch == engine.state.max_epochs
        if engine.ends_after_step and not is_last:
            self._stop_for_time(engine)
        elif engine.state.epoch % self.interval == 0 or is_last:
            self(engine)

    def _stop_for_time(self, engine: Engine) -> None:
        self(engine)
        state = engine.state
        logger.warning(
            "max_minutes: %.3g minutes are over at step %d of %d; the other steps are left out. To train "
            "further, resume with a larger max_minutes or none (--overrides max_minutes=null)",
            self.max_minutes,
            state.iteration,
            state.max_epochs * state.epoch_length,  # type: ignore[operator]
        )
        engine.terminate()

    def __call__(self, engine: Engine) -> None:
        """Validate, and end the training if the patience is exhausted."""
        state = engine.state
        self.validator.state.trainer_step = state.iteration
        is_last_step = state.iteration == state.max_epochs * state.epoch_length  # type: ignore[operator]
        self.validator.state.is_last = is_last_step or engine.ends_after_step  # type: ignore[attr-defined]
        super().__call__(engine)
        metrics = self.validator.state.metrics
        self.metrics = {name: float(v) for name, v in metrics.items() if name == "loss" or not math.isnan(v)}
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

    @property
    def is_time_over(self) -> bool:
        """Whether the training has taken ``max_minutes``; all processes of a distributed training agree."""
        return self.max_minutes is not None and bool(idist.all_reduce(self.seconds, "MAX") >= 60 * self.max_minutes)

    @property
    def stopping_key(self) -> str | None:
        """The key of the configuration whose limit has stopped the training; None: no limit is reached."""
        if self.is_patience_exhausted:
            return "early_stop_patience"
        return "max_minutes" if self.is_time_over else None

    @property
    def seconds(self) -> float:
        """How long the training has taken, in all its runs."""
        return self._seconds_before + (self._ended_at or time.monotonic()) - self._started_at

    def state_dict(self) -> dict[str, Any]:
        """The state of early stopping, the time, and the last metrics."""
        return {
            "best": self.best,
            "validations_since_best": self.validations_since_best,
            "seconds": self.seconds,
            "metrics": self.metrics,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of early stopping, and the last metrics."""
        self.metrics = state["metrics"]
        self.best, self.validations_since_best = state["best"], state["validations_since_best"]
        self._seconds_before = state["seconds"]
        self._start_clock()


# -- probes ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class ZSemProbes:
    """Ignite handler for the evaluator: after some validations, probe the averaged network's z_sem for labels.

    A linear model learns each label from the z_sem of training cases and predicts it for the validation cases. Its
    scores (:class:`~monai_diffae.latents.probing.QuickScores`) become metrics of the validation: ``probe_<label>``,
    ``low_of_probe_<label>``, ``high_of_probe_<label>`` and ``neighbors_<label>``. Probes draw no random numbers from
    the training. Some are left out if they take too much time, but never the one after the last step.
    """

    cases: Sequence[Case]  #: the cohort, with patients and labels
    train: CachedCases  #: the training images; probes use them without augmentation
    val: CachedCases  #: the validation images
    network: nn.Module  #: the averaged network
    inferer: DiffusionAutoencoderInferer  #: encodes images
    interval: int  #: epochs between two probes, which come with validations; 0: no probes
    val_interval: int  #: epochs between two validations
    targets: Sequence[str] = ()  #: the labels; empty: the first 8 that can be probed
    batch_size: int = 64  #: images that are encoded at once
    encoder_key: str = "image"  #: the image that the encoder sees
    most_time: float = 0.05  #: the largest share of the time since the first validation
    _probes: list[QuickProbe] | None = None
    _items: list[tuple[CachedCases, int]] = field(default_factory=list)
    _started_at: float = math.nan
    _seconds: float = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, before the handlers that write its metrics."""
        if self.interval and isinstance(self.train, CachedCases) and isinstance(self.val, CachedCases):
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.COMPLETED, self)
        elif self.interval and self.targets:
            logger.warning(
                "probe_targets: no label is probed, as this needs CachedCases in train and validate; omit it"
            )

    def _start(self, engine: Engine) -> None:
        # Ignite keeps the metrics of the validation before
        engine.state.metrics = {k: v for k, v in engine.state.metrics.items() if not is_of_probes(k)}
        if math.isnan(self._started_at):
            self._started_at = time.monotonic()

    def __call__(self, engine: Engine) -> None:
        """Probe, if it is time for it."""
        epoch, is_last = engine.state.epoch, getattr(engine.state, "is_last", False)
        is_due = epoch // self.interval > (epoch - self.val_interval) // self.interval
        start = time.monotonic()
        if not is_last and (not is_due or self._seconds > self.most_time * (start - self._started_at)):
            return
        probes = self._prepared()
        if not probes:
            return
        z_sem = self._encoded(engine.state.device)  # type: ignore[attr-defined]
        parts = []
        for probe in probes:
            name, score = probe.target.name, probe.scores(z_sem)
            metrics = {
                f"probe_{name}": score.score,
                f"low_of_probe_{name}": score.low,
                f"high_of_probe_{name}": score.high,
                f"neighbors_{name}": score.neighbors,
            }
            engine.state.metrics.update({name: value for name, value in metrics.items() if math.isfinite(value)})
            figure = "R2" if probe.target.classes is None else "AUROC"
            parts.append(f"{name} {figure} {score.score:.2f} ({score.low:.2f} to {score.high:.2f})")
        self._seconds += time.monotonic() - start
        logger.info("probes of z_sem, with 95 %% intervals: %s", ", ".join(parts))

    def _prepared(self) -> list[QuickProbe]:
        """The probes, and the images that they need, chosen when the scans have been read."""
        if self._probes is None:
            by_id = {case.id: case for case in self.cases}
            sides = [(data, _spread(data, by_id)) for data in (self.train.without_augmentation(), self.val)]
            self._items = [(data, position) for data, positions in sides for position in positions]
            cases = [by_id[str(data.items[position]["id"])] for data, position in self._items]
            is_train = np.arange(len(cases)) < len(sides[0][1])
            self._probes = _choose(cases, is_train, self.targets)
        return self._probes

    @torch.no_grad()
    def _encoded(self, device: torch.device) -> NDArray[np.float64]:
        self.network.eval()
        batches = [self._items[i : i + self.batch_size] for i in range(0, len(self._items), self.batch_size)]
        z_sem = [
            self.inferer.encode(
                torch.stack([data[position][self.encoder_key] for data, position in batch]).to(device), self.network
            )
            for batch in batches
        ]
        return torch.cat(z_sem).double().cpu().numpy()


def _spread(data: CachedCases, by_id: Mapping[str, Case]) -> list[int]:
    """At most 1000 positions of cases with a label, spread over the set."""
    labels = [by_id[str(item["id"])].labels.values() for item in data.items]
    labelled = [position for position, values in enumerate(labels) if any(value is not None for value in values)]
    return [labelled[i] for i in spread(len(labelled), MOST_CASES)]


def _choose(cases: Sequence[Case], is_train: NDArray[np.bool_], targets: Sequence[str]) -> list[QuickProbe]:
    """The labels to probe."""
    names = label_names(cases)
    unknown = [name for name in targets if name not in names]
    if unknown:
        raise ConfigError(f"probe_targets: the cohort has no label '{unknown[0]}'; it has {', '.join(names) or 'none'}")
    patients, probes, unusable = np.array([case.patient for case in cases]), [], []
    for name in targets or names:
        try:
            probes.append(QuickProbe.choose([case.labels.get(name) for case in cases], name, patients, is_train))
        except ConfigError:
            if targets:
                raise
            unusable.append(name)
    if unusable:
        logger.info("not probed, as they vary too little or too few patients have them: %s", ", ".join(unusable))
    if not targets and len(probes) > MOST_TARGETS:
        left_out = ", ".join(probe.target.name for probe in probes[MOST_TARGETS:])
        logger.info("probe_targets: the first %d labels are probed, without %s", MOST_TARGETS, left_out)
        return probes[:MOST_TARGETS]
    return probes
