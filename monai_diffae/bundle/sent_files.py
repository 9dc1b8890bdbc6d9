"""The files of a trained bundle that are sent to others: a list of what is sent, not of what stays behind."""

# tested in tests/apps/sharing/test_push.py

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from monai_diffae.bundle import layout
from monai_diffae.bundle.checksum_list import CHECKSUM_LIST, write_checksum_list
from monai_diffae.bundle.folders import export_bundle, remove_private_values, shipped
from monai_diffae.data.torch_files import read_torch_file
from monai_diffae.errors import ConfigError

_MODEL_CONFIGS = tuple(
    f"{layout.CONFIGS}/{name}"
    for name in (
        layout.TRAIN, layout.TRAIN_LATENT, layout.DISTILL, layout.INFERENCE, layout.EVALUATE,
        f"{layout.MULTI_GPU}{layout.TRAIN}", f"{layout.MULTI_GPU}{layout.TRAIN_LATENT}", "metadata.json",
    )
)  # fmt: skip
_DOCS = {  # what the shipped files say about weights, and what a trained bundle has to say instead
    "docs/README.md": ("The bundle has no weights", "describe the trained model, its data and its quality there"),
    "docs/data_license.txt": ("no trained weights", "name the data that the model was trained on, and their licence"),
}
_SECOND_MODELS = (
    (layout.LATENT_MODEL, layout.LATENT_CONFIG),
    (layout.FAST_MODEL, layout.FAST_CONFIG),
)

SENT_FILES = (
    "LICENSE",
    *_DOCS,
    *_MODEL_CONFIGS,
    *(
        f"{layout.MODELS}/{name}"
        for name in (*layout.LOADED_FILES, layout.METRICS, layout.PROVENANCE, *sum(_SECOND_MODELS, ()))
    ),
)
"""The files that are sent if they exist, beside configurations that are exactly those of this package."""


def may_be_in_a_sent_bundle(name: str) -> bool:
    """Whether a file can be one of a bundle that was sent, by its name relative to the bundle.

    Example:
        >>> [may_be_in_a_sent_bundle(name) for name in ("models/model.pt", "configs/embed.json", "run.py", "../a.json")]
        [True, True, False, False]
    """
    path = Path(name)
    is_config = path.suffix == ".json" and str(path.parent) in (layout.CONFIGS, f"{layout.CONFIGS}/overlays")
    return name in SENT_FILES or (is_config and path.as_posix() == name)


def copy_for_others(bundle: Path, folder: Path) -> dict[str, int]:
    """Copy what is sent of a trained bundle to an empty folder, with a list of checksums.

    These are :data:`SENT_FILES`, in which paths and other private values are removed, and the configurations that are
    exactly those of this package. Checkpoints, tracking, pictures, tables and any other file stay behind; so does
    ``anomaly.pt``, which is made from the residuals of single cases.

    Args:
        bundle: a trained bundle, which is only read.
        folder: an empty folder.

    Returns:
        The sizes of the files in bytes, by their names.

    Raises:
        ConfigError: the bundle is not trained, its documents still say that it has no weights, or a file of weights
            holds something else.
        UnsafeInputError: loading its weights would run code.
        ScanError: its weights are damaged.

    Example:
        >>> copy_for_others(Path("my_model"), Path("copy"))
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_model: there is no models/model.pt; train the bundle first, or choose ...
    """
    layout.check_trained(bundle, layout.models_folder(bundle))
    _check_documents(bundle)
    export_bundle(bundle, bundle, folder)
    _copy_second_models(bundle, folder)
    known = _shipped_configs()
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        name = path.relative_to(folder).as_posix()
        if name not in SENT_FILES and not (may_be_in_a_sent_bundle(name) and _content(path) in known.get(name, [])):
            path.unlink()
        elif path.suffix == ".pt":
            _check_weights(path)
    names = list(_files(folder))
    write_checksum_list(folder, names)
    return {name: (folder / name).stat().st_size for name in [*names, CHECKSUM_LIST]}


def _check_weights(path: Path) -> None:
    """Check that a file holds weights and nothing else, such as texts."""
    state = read_torch_file(path, "is damaged; train the bundle again")
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConfigError(f"{path.name}: holds something other than weights; train the bundle again")


def files_that_stay(bundle: Path, sent: dict[str, int]) -> list[str]:
    """The files of a bundle that are not sent, by their names; those of hidden folders are not listed."""
    return [name for name in _files(bundle) if name not in sent]


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()


def _check_documents(bundle: Path) -> None:
    for name, (phrase, advice) in _DOCS.items():
        try:
            text = (bundle / name).read_text(encoding="utf-8") if (bundle / name).is_file() else phrase
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name}: is not UTF-8 text; save it as UTF-8") from error
        if phrase in " ".join(text.split()):
            raise ConfigError(f"{name}: says nothing about the trained weights; {advice}")


def _copy_second_models(bundle: Path, folder: Path) -> None:
    """Copy a latent DDIM and a fast decoder, if they belong to the bundle's model."""
    from monai_diffae.bundle.checksums import checksum

    models = layout.models_folder(bundle)
    for weights, config in _SECOND_MODELS:
        if (models / weights).is_file() and (models / config).is_file():
            if _autoencoder_of(models / config) != checksum(bundle):
                raise ConfigError(
                    f"{weights}: belongs to another model than models/model.pt; train it again, or remove it"
                )
            for name in (weights, config):
                shutil.copy2(models / name, folder / layout.MODELS / name)
            remove_private_values(folder / layout.MODELS / config)


def _autoencoder_of(config: Path) -> Any:
    """The checksum of the autoencoder that a second model belongs to; None if its configuration does not say it."""
    with suppress(ValueError, TypeError, KeyError):
        return _content(config)["autoencoder_sha256"]
    return None


def _shipped_configs() -> dict[str, list[Any]]:
    """The contents of all configurations of this package, by their names in a bundle."""
    known: dict[str, list[Any]] = {}
    for path in shipped("bundles").glob(f"*/{layout.CONFIGS}/*.json"):
        known.setdefault(f"{layout.CONFIGS}/{path.name}", []).append(_content(path))
    for path in shipped("overlays").glob("*.json"):
        known.setdefault(f"{layout.CONFIGS}/overlays/{path.name}", []).append(_content(path))
    return known


def _content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
