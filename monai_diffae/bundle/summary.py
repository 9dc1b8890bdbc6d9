"""A bundle's properties and its own code, as plain values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai_diffae.bundle.config_reading import read_own_code
from monai_diffae.bundle.decoding import inferer_settings
from monai_diffae.bundle.layout import CONFIGS, FILES_THAT_RUN, MODEL, MODELS, models_folder
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import UnsafeInputError

_PROPERTIES = ("spatial_dims", "in_channels", "image_size", "image_keys", "intensity", "model_range")


def bundle_summary(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The properties of a trained bundle: its images, size, decoding settings, own code and checksums.

    Nothing of a bundle with code of its own is run, unless it is trusted. Its summary has the code and checksums only.

    Returns:
        Values by their names. ``own_code`` has one text for each target, expression or place that no configuration of
        this package has; ``files`` the checksums of the configurations.
    """
    root = Path(directory)
    code = bundle_code(root)
    content = {"own_code": code, "files": {name: file_checksum(path) for name, path in _files(root).items()}}
    weights = models_folder(root) / MODEL
    if code and not weights.is_file():
        return content
    try:
        return {**_properties(root), **content}
    except UnsafeInputError:
        if not code:  # the weights are unsafe
            raise
        return {**content, "sha256": file_checksum(weights)}


def bundle_code(root: Path) -> list[str]:
    """A bundle's own code: one text for each part. Nothing of it is run.

    Within :func:`~monai_diffae.bundle.trust.trusting`, the configurations are remembered as trusted.
    """
    return [f"{name}: {part}" for name, path in _files(root).items() for part in read_own_code(path)]


def _files(root: Path) -> dict[str, Path]:
    """The configurations that this package builds or runs, by their names with the folder."""
    folders = {MODELS: models_folder(root), CONFIGS: root / CONFIGS}
    paths = {f"{name}/{file}": path / file for name, path in folders.items() for file in FILES_THAT_RUN[name]}
    return {name: path for name, path in paths.items() if path.is_file()}


def _properties(root: Path) -> dict[str, Any]:
    trained = load_bundle(root, "cpu")
    settings = inferer_settings(trained.inferer)
    return {
        **{key: trained.config[key] for key in _PROPERTIES if key in trained.config},
        "z_channels": trained.z_channels,
        "parameters": sum(p.numel() for p in trained.network.parameters()),
        **{name: settings[name] for name in ("steps", "invert_steps", "solver", "inversion", "spacing")},
        "z_sem_usage": trained.z_sem_usage,
        "sha256": trained.sha256,
    }
