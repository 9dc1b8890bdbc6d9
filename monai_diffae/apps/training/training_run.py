"""The run of a training configuration: the bundle's file, remembered settings, overlays and given values."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from monai_diffae.bundle import layout
from monai_diffae.bundle.config_reading import read_config
from monai_diffae.bundle.loading import set_values
from monai_diffae.bundle.parser import ModuleLocator
from monai_diffae.bundle.run_preparation import values_are_complete
from monai_diffae.bundle.training_settings import overlap
from monai_diffae.bundle.trust import check_code
from monai_diffae.bundle.warm_start import remembered_settings
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRun:
    """A run of a training configuration, not initialised, and the folder of its results."""

    workflow: ConfigWorkflow
    folder: Path


def open_training_run(file: Path, overlays: Sequence[Path], values: Mapping[str, Any]) -> TrainingRun:
    """Read the configuration of a training.

    A value is taken from the first of these that has it: ``values``, the overlays, the settings of the training that is
    resumed or of the bundle with whose weights it begins, the bundle's file.
    """
    given = read_config(file, *overlays)
    check_code(values, "overrides", places=False)
    set_values(given, values, "the configuration", f"configs/{file.name}")
    folder = Path(str(given.get_parsed_content("output_dir")))
    settings, _ = remembered_settings(
        folder,
        prefix=given.get("train#checkpoint#prefix", ""),
        start_from=given.get("start_from"),
        overwrite=given.get("overwrite") is True,
    )
    if not settings:
        workflow = _workflow([file, *overlays])
    else:
        extended = _extended_ids(overlays)
        kept = {key: value for key, value in settings.items() if not any(overlap(key, other) for other in extended)}
        with tempfile.TemporaryDirectory() as temporary:
            remembered = Path(temporary) / layout.TRAINING
            remembered.write_text(json.dumps(kept))
            try:
                workflow = _workflow([file, remembered, *overlays])
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise ConfigError(
                    f"{layout.TRAINING}: its settings do not fit configs/{file.name}; use the bundle with which the "
                    "training began"
                ) from error
    check_code(workflow.parser.get(), f"{file.resolve().parents[1].name}: {file.name}")
    # not as keyword arguments of ConfigWorkflow: its `tracking` (MONAI 1.6.1) is not our key
    set_values(workflow.parser, values, "the configuration", f"configs/{file.name}")
    return TrainingRun(workflow, folder)


class _Workflow(ConfigWorkflow):
    """A run that cannot import modules from the bundle's folder, where MONAI (1.6.1) looks before all other folders."""

    def initialize(self) -> Any:
        """Evaluate the key ``initialize``; values of a trained model are in the configuration already."""
        with values_are_complete():
            return super().initialize()

    def run(self) -> Any:
        """Evaluate the key ``run``."""
        return self._run_expr(id=self.run_id)


def _workflow(files: Sequence[Path]) -> ConfigWorkflow:
    # MONAI warns about each overlay from another folder, and about the lack of a logging file
    log = logging.getLogger("monai.bundle.workflows")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        workflow = _Workflow([str(file) for file in files], logging_file=False, workflow_type="train")
    finally:
        log.setLevel(level)
    workflow.parser.locator = ModuleLocator()
    return workflow


def _extended_ids(overlays: Iterable[Path]) -> set[str]:
    """The ids of lists and mappings that overlays extend; remembered settings have the result of that already."""
    contents = [ConfigParser.load_config_file(str(overlay)) for overlay in overlays]
    return {key[1:] for content in contents for key in content if key.startswith("+")}
