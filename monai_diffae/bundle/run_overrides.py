"""What a bundle run changes in the model's configuration, as overrides of the command that it calls."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_diffae.bundle.config import check_all_set, model_config, running_config
from monai_diffae.bundle.json_files import read_values
from monai_diffae.bundle.layout import CONFIG, CONFIGS, models_folder
from monai_diffae.bundle.training_settings import changes
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)

_EVALUATOR = ("dataset", "dataloader", "postprocessing", "writer", "handlers", "evaluator")
_ARGUMENTS = ("imports", "bundle_root", "device", "columns")  # a command gets these as arguments, or does not need them


def run_overrides(
    bundle_root: str | os.PathLike[str], overrides: Mapping[str, Any], file: str = "inference.json"
) -> dict[str, Any]:
    """Return overrides for a command that is run by ``configs/inference.json`` or ``configs/evaluate.json``.

    The command reads the model's configuration from the trained bundle. Values of it that the run changes, such as
    ``--inferer#steps 50``, would otherwise have no effect. The running configuration is compared with the shipped file,
    and with the shipped file after ``models/config.json`` has replaced its values: the run began with the one from
    which it differs less.

    Args:
        bundle_root: the bundle's folder.
        overrides: ids and values that the run names as overrides; they take precedence.
        file: the run's file in ``configs``.

    Returns:
        Ids and values.

    Raises:
        ConfigError: called from anywhere but an expression of a bundle's configuration, a value is missing, or the run
            changes a part of the evaluator, which the command does not use.
    """
    check_all_set()
    root = Path(bundle_root)
    shipped = read_values(root / CONFIGS / file)
    trained = {**shipped, **read_values(models_folder(root) / CONFIG)}
    if not trained:
        return dict(overrides)
    config = running_config()
    _refuse_changes_without_effect(shipped, config)
    running = _model(config)
    from_trained, from_shipped = (_changes(_model(start), running) for start in (trained, shipped))
    if len(from_trained) <= len(from_shipped):
        return {**from_trained, **overrides}
    differing = sorted(
        {key.partition("#")[0] for key in from_trained} - {key.partition("#")[0] for key in from_shipped}
    )
    logger.warning(
        "the run uses the trained model's values of %s, from models/config.json, not those of %s",
        ", ".join(differing),
        file,
    )
    return {**from_shipped, **overrides}


def _refuse_changes_without_effect(shipped: dict[str, Any], config: dict[str, Any]) -> None:
    before, after = ({key: each.get(key) for key in _EVALUATOR} for each in (shipped, config))
    changed = next(iter(_changes(before, after)), None)
    if changed is not None:
        raise ConfigError(
            f"{changed}: has no effect on this run, which calls a command; use its arguments, such as limit or "
            "batch_size, or run the evaluator itself"
        )


def _model(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model_config(config).items() if key not in _ARGUMENTS}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a running configuration that differ; keys that it does not have are no change."""
    return dict(changes({key: value for key, value in before.items() if key in after}, dict(after)))
