"""Probes during training: what z_sem says about the labels of held-out patients."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import nn

from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cases import Case
from monai_diffae.errors import ConfigError
from monai_diffae.handlers.metric_names import is_of_probes
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.latents.probing import QuickProbe, QuickScores

logger = logging.getLogger(__name__)

MOST_CASES = 1000  # of the training, and as many held-out ones
MOST_TARGETS = 8
_MOST_TIME = 0.05  # of the time since the first validation


class ZSemProbes:
    """Ignite handler for the evaluator: after some validations, probe the averaged network's z_sem for labels.

    A linear model learns each label from the z_sem of training cases and predicts it for the validation cases, whose
    patients neither it nor the autoencoder has seen. The scores become metrics of the validation: ``probe_<label>``,
    its interval in ``low_of_probe_<label>`` and ``high_of_probe_<label>``, and the label agreement of the nearest
    training cases in ``neighbors_<label>``; see :class:`~monai_diffae.latents.probing.QuickScores`. Probes read the
    weights only, and draw no random numbers from the training. If they take more than 5 % of the time, some are left
    out, but never the one after the last step.

    Args:
        cases: the cohort, with patients and labels.
        train: the training images; probes use them without augmentation.
        val: the validation images.
        network: the averaged network.
        inferer: encodes images.
        interval: epochs between two probes, which come with validations; 0: no probes.
        val_interval: epochs between two validations.
        targets: the labels; empty: the first 8 that can be probed.
        batch_size: images that are encoded at once.
        encoder_key: the image that the encoder sees.

    Raises:
        ConfigError: (after the first validation) a label in ``targets`` does not exist, or cannot be probed.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        train: CachedCases,
        val: CachedCases,
        *,
        network: nn.Module,
        inferer: DiffusionAutoencoderInferer,
        interval: int,
        val_interval: int,
        targets: Sequence[str] = (),
        batch_size: int = 64,
        encoder_key: str = "image",
    ) -> None:
        self.cases = {case.id: case for case in cases} if interval else {}
        self.train, self.val = train, val
        self.network, self.inferer = network, inferer
        self.interval, self.val_interval = interval, val_interval
        self.targets = list(targets)
        self.batch_size, self.encoder_key = batch_size, encoder_key
        self._probes: list[QuickProbe] | None = None
        self._items: list[tuple[CachedCases, int]] = []
        self._started_at, self._seconds = math.nan, 0.0

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, before the handlers that write its metrics."""
        if self.interval:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.COMPLETED, self)

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
        if not is_last and (not is_due or self._seconds > _MOST_TIME * (start - self._started_at)):
            return
        probes = self._prepared()
        if not probes:
            return
        z_sem = self._encoded(engine.state.device)  # type: ignore[attr-defined]
        scores = {probe.target.name: probe.scores(z_sem) for probe in probes}
        engine.state.metrics.update(_metrics(scores))
        self._seconds += time.monotonic() - start
        logger.info("%s", _line(probes, scores))

    def _prepared(self) -> list[QuickProbe]:
        """The probes, and the images that they need, chosen when the scans have been read."""
        if self._probes is None:
            sides = [(data, self._spread(data)) for data in (self.train.without_augmentation(), self.val)]
            self._items = [(data, position) for data, positions in sides for position in positions]
            cases = [self.cases[str(data.items[position]["id"])] for data, position in self._items]
            is_train = np.arange(len(cases)) < len(sides[0][1])
            self._probes = _choose(cases, is_train, self.targets)
        return self._probes

    def _spread(self, data: CachedCases) -> list[int]:
        """At most 1000 positions of cases with a label, spread over the set."""
        labelled = [
            position
            for position, item in enumerate(data.items)
            if any(value is not None for value in self.cases[str(item["id"])].labels.values())
        ]
        count = min(MOST_CASES, len(labelled))
        return [labelled[i * len(labelled) // count] for i in range(count)]

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


def _choose(cases: Sequence[Case], is_train: NDArray[np.bool_], targets: Sequence[str]) -> list[QuickProbe]:
    """The labels to probe."""
    names = list(dict.fromkeys(name for case in cases for name in case.labels))
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


def _metrics(scores: dict[str, QuickScores]) -> dict[str, float]:
    """The scores as metrics of a validation; those that are not defined are left out."""
    metrics: dict[str, Any] = {}
    for name, score in scores.items():
        metrics |= {
            f"probe_{name}": score.score, f"low_of_probe_{name}": score.low, f"high_of_probe_{name}": score.high,
            f"neighbors_{name}": score.neighbors,
        }  # fmt: skip
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _line(probes: Sequence[QuickProbe], scores: dict[str, QuickScores]) -> str:
    parts = [
        f"{probe.target.name} {'R2' if probe.target.classes is None else 'AUROC'} {score.score:.2f} "
        f"({score.low:.2f} to {score.high:.2f})"
        for probe, score in ((probe, scores[probe.target.name]) for probe in probes)
    ]
    return f"probes of z_sem, with 95 % intervals: {', '.join(parts)}"
