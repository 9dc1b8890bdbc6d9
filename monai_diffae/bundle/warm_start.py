"""Warm start: a training that begins from the weights of a trained bundle, its own or another one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from monai_diffae.bundle import layout
from monai_diffae.bundle.config import model_config
from monai_diffae.bundle.consistent_reading import read_consistently
from monai_diffae.bundle.json_files import read_values
from monai_diffae.bundle.training_settings import read_training_settings
from monai_diffae.bundle.weights import read_weights
from monai_diffae.data.file_checksums import cached_checksum
from monai_diffae.errors import ConfigError

# What the weights were trained for. The cohort's split and the decoding settings may differ.
_BINDING = ("network_def", "preprocessing", "encoder_key", "diffusion")
_NOT_BINDING = {"imports", "device", "bundle_root", "first_stage_bundle"}
_DATA_KEYS = ("columns", "patient_pattern")


def start_settings(start_from: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings for a training that begins from a trained bundle: those that bind it, and those of its training."""

    def read(models: Path) -> dict[str, Any]:
        config = _binding(_trained_config(Path(start_from), models))
        config.pop("first_stage", None)  # a training reads it from its own bundle
        remembered = read_training_settings(models)
        return {**config, **{key: value for key, value in remembered.items() if _first(key) not in _DATA_KEYS}}

    return read_consistently(start_from, read, (*layout.LOADED_FILES, layout.TRAINING))


def first_weights(
    start_from: str | os.PathLike[str] | None, output_dir: str | os.PathLike[str], overwrite: bool = False
) -> Path | None:
    """The trained bundle with whose weights a new training begins; None: it resumes, or begins with random weights.

    If the folder of the training has weights but no checkpoint, like a bundle that others sent, these weights are
    fine-tuned.

    Example:
        >>> first_weights("my_bundle", "my_new_bundle")
        PosixPath('my_bundle')
    """
    if start_from is not None:
        return Path(start_from)
    models = layout.models_folder(output_dir)
    has_weights = (models / layout.MODEL).is_file() and (models / layout.CONFIG).is_file()
    return Path(output_dir) if has_weights and not overwrite and not (models / layout.CHECKPOINT).is_file() else None


def remembered_settings(
    output_dir: str | os.PathLike[str],
    *,
    prefix: str = "",
    start_from: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> tuple[dict[str, Any], str]:
    """The settings that a training takes from an earlier one: the one that it resumes, or that of its first weights.

    Values by the ids of the training's configuration, none if the training is new, and where they are from.

    Example:
        >>> remembered_settings("a_new_folder")
        ({}, '')
    """
    models = layout.models_folder(output_dir)
    if (models / f"{prefix}{layout.CHECKPOINT}").is_file() and not overwrite:
        return read_training_settings(models, prefix), f"{layout.MODELS}/{prefix}{layout.TRAINING}"
    source = None if prefix else first_weights(start_from, output_dir, overwrite)
    return ({}, "") if source is None else (start_settings(source), source.resolve().name)


def check_start(
    start_from: str | os.PathLike[str] | None,
    output_dir: str | os.PathLike[str],
    config: dict[str, Any],
    overwrite: bool = False,
) -> None:
    """Check that a training can begin from a trained bundle; does nothing without one.

    Args:
        start_from: the trained bundle.
        output_dir: the folder of the training.
        config: the configuration that describes the model of the training.
        overwrite: the training replaces the weights in its folder, which may then be those that it begins with.

    Raises:
        ConfigError: the bundle is not trained, its network, preprocessing or noise schedule differs, or it is the
            output folder without ``overwrite``.
    """
    if start_from is None:
        return
    root = Path(start_from)
    if not overwrite and root.resolve() == Path(output_dir).resolve():
        raise ConfigError(
            f"start_from: {root.name} is also the folder of the results; choose another output_dir, or set overwrite "
            "to replace its weights"
        )
    read_consistently(root, lambda models: _check_binding(root, models, config))


def start_weights(
    start_from: str | os.PathLike[str], network: nn.Module, config: dict[str, Any]
) -> tuple[dict[str, Tensor], str]:
    """Read the averaged weights of a trained bundle to train the same network, and the SHA-256 of their file."""
    root = Path(start_from)

    def read(models: Path) -> tuple[dict[str, Tensor], str]:
        _check_binding(root, models, config)
        return read_weights(models / layout.MODEL, network), cached_checksum(models / layout.MODEL)

    return read_consistently(root, read)


def own_weights(models: Path, network: nn.Module, config: dict[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Read the weights to fine-tune from the folder of the training itself, and the SHA-256 of their file."""
    path = models / layout.MODEL
    if (models / layout.CONFIG).is_file() and (keys := _differing(_trained_config(models.parent, models), config)):
        raise ConfigError(
            f"{path.name}: was trained with other values of {', '.join(keys)}; use its values, choose another "
            "output_dir, or set overwrite to train another model"
        )
    return read_weights(path, network), cached_checksum(path)


def _check_binding(root: Path, models: Path, config: dict[str, Any]) -> None:
    if keys := _differing(_trained_config(root, models), config):
        raise ConfigError(
            f"start_from: {root.name} was trained with other values of {', '.join(keys)}; use its values, or train "
            "without start_from"
        )


def _differing(trained: dict[str, Any], current: dict[str, Any]) -> list[str]:
    before, now = _binding(trained), _binding(current)
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def _trained_config(root: Path, models: Path) -> dict[str, Any]:
    layout.check_trained(root, models, layout.MODEL, layout.CONFIG)
    return read_values(models / layout.CONFIG, f"copy the bundle {root.name} again")


def _binding(config: dict[str, Any]) -> dict[str, Any]:
    described = model_config(config, roots=_BINDING)
    return {key: value for key, value in described.items() if key not in _NOT_BINDING}


def _first(key: str) -> str:
    return key.partition("#")[0]
