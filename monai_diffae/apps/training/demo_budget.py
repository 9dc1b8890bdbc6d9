"""What the demo leaves out so that it ends in time on a slow or busy machine; decided once, and remembered."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from monai_diffae.apps.training.planning import MEASURED_SCANS, find_device, read_training_config
from monai_diffae.apps.training.speed import fastest, measure_speed
from monai_diffae.bundle.config import build
from monai_diffae.data.atomic import write_json
from monai_diffae.data.cohort_split import SplitCohort

logger = logging.getLogger(__name__)

_FOR_TRAINING, _FOR_RECONSTRUCTIONS = 0.8, 0.12  # shares of the time
_CLEARLY_FEWER = 0.8  # a short measurement is not more exact
_PER_RECONSTRUCTION = 60.0  # in training images: inverted once and decoded twice
_FEWEST_RECONSTRUCTIONS = 4


@dataclass(frozen=True)
class DemoBudget:
    """How much of the demo is done.

    Attributes:
        settings: values for keys of the training's configuration.
        num_reconstructions: test cases to reconstruct.
        threads: threads of the CPU, if other programs use it; None: as many as torch uses.
    """

    settings: dict[str, Any]
    num_reconstructions: int
    threads: int | None


def demo_budget(
    file: Path,
    cohort: Path,
    overlay: Path,
    overrides: Mapping[str, Any],
    device: str | None,
    minutes: float,
    num_reconstructions: int,
) -> DemoBudget:
    """Read the decision of an earlier call, or measure how fast this machine trains, and decide."""
    if file.is_file():
        return DemoBudget(**json.loads(file.read_text()))
    parser = read_training_config(Path("diffae_2d"), [overlay])
    target = find_device(overrides.get("device") or device)
    parser.update({**overrides, "dataset_dir": str(cohort), "device": str(target)})
    config = copy.deepcopy(parser.get())
    train = build(parser, "cohort", SplitCohort).split("train")
    epochs, batch_size = (int(parser.get_parsed_content(key)) for key in ("max_epochs", "batch_size"))
    batch_size = min(batch_size, len(train))
    items = [case.item() for case in train[:MEASURED_SCANS]]
    speed, threads = fastest(partial(measure_speed, config, target, items, batch_size))
    epoch_s = max(1, len(train) // batch_size) * speed.seconds_per_step
    affordable = max(1, int(60 * minutes * _FOR_TRAINING // epoch_s))
    settings: dict[str, Any] = {"max_minutes": round(minutes * _FOR_TRAINING, 2)}
    if affordable < _CLEARLY_FEWER * epochs:
        settings["max_epochs"] = affordable
    reconstruction_s = _PER_RECONSTRUCTION / speed.images_per_second
    number = int(60 * minutes * _FOR_RECONSTRUCTIONS / reconstruction_s)
    budget = DemoBudget(settings, min(num_reconstructions, max(number, _FEWEST_RECONSTRUCTIONS)), threads)
    _log_what_is_left_out(budget, minutes, epochs, num_reconstructions)
    write_json(file, {**budget.__dict__})
    return budget


def _log_what_is_left_out(budget: DemoBudget, minutes: float, epochs: int, reconstructions: int) -> None:
    left_out = []
    if "max_epochs" in budget.settings:
        left_out.append(f"{budget.settings['max_epochs']} of {epochs} epochs")
    if budget.num_reconstructions < reconstructions:
        left_out.append(f"{budget.num_reconstructions} of {reconstructions} reconstructions")
    if left_out:
        logger.warning(
            "this machine is slow or busy: to end in about %g minutes, the demo does %s; the figures of the "
            "documentation need all of them. Choose another out and more minutes to do more",
            minutes, " and ".join(left_out),
        )  # fmt: skip
