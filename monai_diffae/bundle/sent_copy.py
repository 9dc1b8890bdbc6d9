"""Copy the files of a trained bundle that are sent, without private values, and list their checksums."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_diffae.bundle import layout
from monai_diffae.bundle.checksum_list import CHECKSUM_LIST, write_checksum_list
from monai_diffae.bundle.consistent_reading import read_consistently
from monai_diffae.bundle.described_model import describe_model
from monai_diffae.bundle.folders import shipped
from monai_diffae.bundle.json_files import read_values
from monai_diffae.bundle.model_card import TRAINED, UNTRAINED
from monai_diffae.bundle.sent_files import SENT_FILES, SentFile, may_be_in_a_sent_bundle
from monai_diffae.bundle.sent_metadata import sent_metadata
from monai_diffae.bundle.sent_model import check_sent_model
from monai_diffae.bundle.sent_networks import copy_networks
from monai_diffae.bundle.sent_values import SentValues, sent_configuration
from monai_diffae.data.atomic import write_json
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError

_DOCS = {  # what the shipped files say about weights, and what a trained bundle has to say instead
    layout.MODEL_CARD: ((UNTRAINED, TRAINED), "describe the trained model, its data and its quality there"),
    "docs/data_license.txt": (
        ("no trained weights",),
        "name the data that the model was trained on, and their licence",
    ),
}


@dataclass(frozen=True)
class SentCopy:
    """What was copied of a bundle for others.

    Attributes:
        sizes: the sizes of the files in bytes, by their names.
        removed: the ids of the values that were removed or replaced, by the names of the files.
        own: the author's own words that are sent because the model needs them, by the names of the files.
    """

    sizes: dict[str, int]
    removed: dict[str, list[str]] = field(default_factory=dict)
    own: dict[str, list[str]] = field(default_factory=dict)


def copy_for_others(bundle: Path, folder: Path) -> SentCopy:
    """Copy the files of a trained bundle that are sent to an empty folder, and list their checksums.

    These are the files of :data:`~monai_diffae.bundle.sent_files.SENT_FILES`, and the configurations that are exactly
    those of this package. Checkpoints, tracking, pictures, tables and any other file stay behind; so does
    ``anomaly.pt``, which is made from the residuals of single cases.

    Args:
        bundle: a trained bundle, which is only read.
        folder: an empty folder.

    Raises:
        ConfigError: the bundle is not trained, its documents still say that it has no weights, its weights do not fit
            its configuration, a file of weights holds something other than weights, a JSON file is damaged, or the
            model needs a value that is not sent.
        UnsafeInputError: loading its weights would run code.
        ScanError: its weights are damaged.

    Example:
        >>> copy_for_others(Path("my_model"), Path("copy"))
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_model: there is no models/model.pt; train the bundle first, or ...
    """
    layout.check_trained(bundle, layout.models_folder(bundle))
    _check_documents(bundle)
    for name in (layout.CONFIGS, layout.MODELS, "docs"):
        (folder / name).mkdir(parents=True)
    names = [Path(name).name for name in SENT_FILES if name.startswith(f"{layout.MODELS}/")]
    read_consistently(bundle, lambda models: _copy_model(models, folder / layout.MODELS), names)
    for file in SENT_FILES.values():
        if not file.name.startswith(f"{layout.MODELS}/") and (bundle / file.name).is_file():
            shutil.copyfile(bundle / file.name, folder / file.name)
    known = _shipped_configs()
    _copy_shipped(bundle, folder, known)
    sent = SentCopy({})
    _clean(folder, known, sent, layout.MODELS)
    describe_model(folder, (layout.TRAIN, layout.INFERENCE, layout.EVALUATE))
    _clean(folder, known, sent, layout.CONFIGS)
    check_sent_model(folder)
    names = list(_files(folder))
    write_checksum_list(folder, names)
    sent.sizes.update({name: (folder / name).stat().st_size for name in [*names, CHECKSUM_LIST]})
    return sent


def files_that_stay(bundle: Path, sent: Mapping[str, int]) -> list[str]:
    """The files of a bundle that are not sent, by their names; those of hidden folders are not listed."""
    return [name for name in _files(bundle) if name not in sent]


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()


def _check_documents(bundle: Path) -> None:
    for name, (phrases, advice) in _DOCS.items():
        try:
            text = (bundle / name).read_text(encoding="utf-8") if (bundle / name).is_file() else phrases[0]
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name}: is not UTF-8 text; save it as UTF-8") from error
        if any(phrase in " ".join(text.split()) for phrase in phrases):
            raise ConfigError(f"{name}: says nothing about the trained weights; {advice}")


def _copy_model(models: Path, target: Path) -> None:
    """Copy the files of a model, and those of a latent DDIM, a fast decoder and networks that belong to it."""
    sha256 = file_checksum(models / layout.MODEL)
    for prefix in ("", layout.FIRST_STAGE_PREFIX, layout.LATENT_PREFIX, layout.FAST_PREFIX):
        weights, config = models / f"{prefix}{layout.MODEL}", models / f"{prefix}{layout.CONFIG}"
        is_second = prefix in (layout.LATENT_PREFIX, layout.FAST_PREFIX)
        if not weights.is_file() or (is_second and not config.is_file()):
            continue
        if is_second and _autoencoder_sha256(config) != sha256:
            raise ConfigError(
                f"{weights.name}: belongs to another model than models/model.pt; train it again, or remove it"
            )
        for path in (weights, models / f"{prefix}{layout.SAFE_MODEL}", config):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
    for name in (layout.METRICS, layout.PROVENANCE):
        if (models / name).is_file():
            shutil.copyfile(models / name, target / name)
    copy_networks(models, target, sha256)


def _autoencoder_sha256(config: Path) -> Any:
    """The checksum of the autoencoder that a second model belongs to; None if its configuration does not say it."""
    with suppress(ConfigError):
        return read_values(config).get("autoencoder_sha256")
    return None


def _copy_shipped(bundle: Path, folder: Path, known: Mapping[str, list[Any]]) -> None:
    """Copy the configurations that are exactly those of this package."""
    for name, contents in known.items():
        if name not in SENT_FILES and may_be_in_a_sent_bundle(name) and (bundle / name).is_file():
            with suppress(ValueError, RecursionError):
                content = _content(bundle / name)
                if content in contents:
                    write_json(folder / name, content)


def _clean(folder: Path, known: Mapping[str, list[Any]], sent: SentCopy, part: str) -> None:
    """Remove private values from the JSON files in one folder of a copy."""
    for file in SENT_FILES.values():
        path = folder / file.name
        if not (file.name.startswith(f"{part}/") and path.suffix == ".json" and path.is_file()):
            continue
        values = _sent_values(file, path, known)
        if values.lost is not None:
            raise ConfigError(
                f"{file.name}: the model needs {values.lost}, but its value is a text of your own, and such texts are "
                "not sent; write a number, a single word or the name of a class there"
            )
        if values.removed:
            sent.removed[file.name] = values.removed
        if values.own:
            sent.own[file.name] = values.own
        write_json(path, values.content)


def _sent_values(file: SentFile, path: Path, known: Mapping[str, list[Any]]) -> SentValues:
    content = read_values(path, "repair or remove it")
    if file.kind == "metadata":
        return sent_metadata(content)
    if file.kind == "record":
        return SentValues(content)
    return sent_configuration(content, known[f"{layout.CONFIGS}/{file.like}"])


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
