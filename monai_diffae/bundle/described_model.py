"""The description of a trained model in a bundle's ``configs``, from which MONAI's tools build it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diffae.bundle.layout import CONFIG, CONFIGS, EVALUATE, INFERENCE, MODELS
from monai_diffae.data.atomic import write_json

logger = logging.getLogger(__name__)

_RUN_KEYS = ("_meta_", "imports", "bundle_root", "dataset_dir", "device")


def describe_model(directory: str | os.PathLike[str], files: Sequence[str] = (INFERENCE, EVALUATE)) -> None:
    """Write the values of ``models/config.json`` into the bundle's ``inference.json`` and ``evaluate.json``.

    Afterwards, each of these files alone describes the trained model, as tools such as MONAI Label expect: sizes,
    network, preprocessing and inferer. Their other keys stay. A file that the bundle lacks is not written. If a user's
    edit made a file unreadable, a warning is logged.

    ``train.json`` is not among the files, because ``train --overwrite`` begins with its values. Its runs read
    ``models/config.json`` when they start (:func:`~monai_diffae.bundle.run_preparation.prepare_run`).
    """
    root = Path(directory)
    config = root / MODELS / CONFIG
    if not config.is_file():
        return
    model: dict[str, Any] = json.loads(config.read_text())
    for file in (root / CONFIGS / name for name in files):
        if file.is_file():
            _describe(file, model)


def model_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration that describe the model, without those that only concern a run.

    Example:
        >>> model_values({"device": "cpu", "z_channels": 64})
        {'z_channels': 64}
    """
    return {key: value for key, value in config.items() if key not in _RUN_KEYS}


def _describe(file: Path, model: dict[str, Any]) -> None:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        imports = list(dict.fromkeys([*content.get("imports", []), *model.get("imports", [])]))
    except (ValueError, TypeError, AttributeError):
        logger.warning(
            "%s: cannot be read, so the trained model's values were not written into it; repair it", file.name
        )
        return
    described = {**content, "imports": imports, **model_values(model)}
    if described != content:
        write_json(file, described)
