"""The description of a trained model in ``configs/inference.json``, from which MONAI's tools build it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from monai_diffae.bundle.layout import CONFIG, CONFIGS, INFERENCE, MODELS
from monai_diffae.data.atomic import write_json

logger = logging.getLogger(__name__)

_OF_THE_RUN = ("_meta_", "imports", "bundle_root", "dataset_dir", "device")


def describe_model(directory: str | os.PathLike[str]) -> None:
    """Write the values of ``models/config.json`` into the bundle's ``configs/inference.json``.

    Afterwards, ``inference.json`` alone describes the trained model, as tools such as MONAI Label expect: sizes,
    network, preprocessing and inferer. Its other keys stay. Nothing happens in a bundle that lacks one of the two
    files. If a user's edit made ``inference.json`` unreadable, a warning is logged.

    Args:
        directory: the bundle's folder.
    """
    root = Path(directory)
    file, config = root / CONFIGS / INFERENCE, root / MODELS / CONFIG
    if not (file.is_file() and config.is_file()):
        return
    model: dict[str, Any] = json.loads(config.read_text())
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        imports = list(dict.fromkeys([*content.get("imports", []), *model.get("imports", [])]))
    except (ValueError, TypeError, AttributeError):
        logger.warning(
            "%s: cannot be read, so the trained model's values were not written into it; repair it", file.name
        )
        return
    described = {**content, "imports": imports, **{k: v for k, v in model.items() if k not in _OF_THE_RUN}}
    if described != content:
        write_json(file, described)
