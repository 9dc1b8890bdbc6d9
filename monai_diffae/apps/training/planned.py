"""A training with a plan of its own: what ``train --minutes`` adds to the given settings."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from monai_diffae.apps.command import refuse_results_among_scans
from monai_diffae.apps.settings import Training
from monai_diffae.apps.training.plan import plan
from monai_diffae.apps.training.planning import read_training_config
from monai_diffae.apps.training.timetables import CHOSEN_KEYS
from monai_diffae.bundle import layout
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.model_file import read_description
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.survey import survey_cohort
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A training with the settings of a plan; no step begins after ``steps_end`` (``time.monotonic``), if given."""

    training: Training
    steps_end: float | None = None

    def watch(self, workflow: ConfigWorkflow) -> None:
        """Let the training's steps end in time, however long reading the scans has taken."""
        if self.steps_end is None:
            return
        workflow.parser.get_parsed_content("train#trainer")  # reads the scans
        validation = workflow.parser.get_parsed_content("validate#handler")
        validation.max_minutes = max(0.0, self.steps_end - time.monotonic()) / 60


def make_bundle(folder: Path, cohort: Path, columns: Mapping[str, str]) -> None:
    """Copy the shipped bundle that fits most scans of a cohort: ``diffae_3d`` for volumes, ``diffae_2d`` for images."""
    refuse_results_among_scans(cohort, bundle=folder)
    name = f"diffae_{survey_cohort(read_cohort(cohort, columns=columns)).spatial_dims}d"
    init_bundle(folder, name)
    logger.info("%s: a new bundle, made from %s", folder.name, name)


def with_plan(bundle: Path, cohort: Path | None, out: Path | None, training: Training, minutes: float) -> Planned:
    """Add the settings of a plan to those of a new training; a training that is resumed keeps its plan.

    If one thread of the CPU is clearly faster than several, torch uses one from now on. ``minutes`` are for everything
    from now on, planning included.
    """
    start = time.monotonic()
    folder = Path(training.overrides.get("output_dir", out or bundle))
    if (folder / layout.MODELS / layout.CHECKPOINT).is_file() and not training.overwrite:
        logger.info("the training continues with the plan that it began with")
        return Planned(training)
    named = {"batch_size": training.batch_size, "uneven": training.uneven}
    given = {key: value for key, value in named.items() if value is not None}
    parser = read_training_config(bundle, training.overlays)
    fixed: dict[str, Any] = {}
    weights = folder / layout.MODELS / layout.MODEL
    if weights.is_file() and not training.overwrite:  # they are fine-tuned
        known = {key: value for key, value in read_description(weights).items() if key in parser}
        fixed = {key: value for key, value in known.items() if key not in CHOSEN_KEYS and not isinstance(value, dict)}
    if cohort is None and parser.get("dataset_dir") == "???":
        raise ConfigError("cohort: is required, as the bundle's configuration names none; give it a value")
    result = plan(
        cohort or parser.get_parsed_content("dataset_dir"), bundle=bundle, minutes=minutes, device=training.device,
        overlays=training.overlays, columns=training.columns, colour=training.colour,
        overrides={**fixed, **given, **training.overrides},
    )  # fmt: skip
    result = result.within(60 * minutes - (time.monotonic() - start))
    new = {key: value for key, value in result.settings.items() if key not in fixed}
    for line in (*(f"{key}: {value}" for key, value in new.items()), *result.time_lines()):
        logger.info("%s", line)
    planned = replace(training, overrides={**new, **training.overrides})
    if result.timed is None or "max_minutes" in training.overrides:
        return Planned(planned)
    if result.timed.threads is not None:
        torch.set_num_threads(result.timed.threads)
    return Planned(planned, time.monotonic() + result.timed.timetable.steps_end_s)
