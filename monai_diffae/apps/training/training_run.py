"""The run of a training configuration: the bundle's file, overlays and given values."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from monai_diffae.bundle.code import ModuleLocator, check_code, read_config, set_values


@dataclass(frozen=True)
class TrainingRun:
    """A run of a training configuration, not initialised, and the folder of its results."""

    workflow: ConfigWorkflow
    folder: Path


def open_training_run(file: Path, overlays: Sequence[Path], values: Mapping[str, Any]) -> TrainingRun:
    """Read the configuration of a training: a value is taken from ``values``, the overlays, or the bundle's file."""
    read_config(file, *overlays)  # checks their code
    check_code(values, "overrides", places=False)
    workflow = _workflow([file, *overlays])
    # not as keyword arguments of ConfigWorkflow: its `tracking` (MONAI 1.6.1) is not our key
    set_values(workflow.parser, values, "the configuration", f"configs/{file.name}")
    return TrainingRun(workflow, Path(str(workflow.parser.get_parsed_content("output_dir"))))


class _Workflow(ConfigWorkflow):
    """A run that cannot import modules from the bundle's folder, where MONAI (1.6.1) looks before all other folders."""

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
