"""Bundle folders: shipped ones are copied, trained ones are completed or exported."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from monai_diffae.bundle.config_values import references
from monai_diffae.bundle.consistent_reading import read_consistently
from monai_diffae.bundle.described_model import describe_model
from monai_diffae.bundle.layout import (
    CHECKPOINT,
    CONFIG,
    CONFIGS,
    EVALUATE,
    INFERENCE,
    MODEL,
    MODEL_FILES,
    MODELS,
    SAFE_MODEL,
    TRAIN,
    models_folder,
)
from monai_diffae.bundle.model_card import mark_replaced_weights
from monai_diffae.bundle.private_values import without_private_values
from monai_diffae.bundle.shipped_weights import complete_weights
from monai_diffae.data.atomic import write_json
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError, MachineError

_PACKAGE = Path(__file__).parents[1]
_STATIC = ("LICENSE", "docs", "configs")  # what training does not change


def shipped(kind: str) -> Path:
    """The folder of the shipped ``bundles`` or ``overlays``: in the installed package, or beside it in a checkout."""
    in_wheel = _PACKAGE / kind
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / {"overlays": "configs"}.get(kind, kind)


def shipped_bundle(name: str, *, or_weights: bool = False) -> Path:
    """The folder of a shipped bundle without weights.

    With ``or_weights``, bundles with weights are found, too; only a part of their files is stored.
    """
    names = sorted([*_names_of_bundles_with(f"{CONFIGS}/{TRAIN}"), *(names_with_weights() if or_weights else ())])
    if name not in names:
        raise ConfigError(f"bundle: there is no {name!r}; choose one of: {', '.join(names)}")
    return shipped("bundles") / name


def names_with_weights() -> list[str]:
    """The names of the shipped bundles with weights.

    Example:
        >>> set(names_with_weights()) <= {"chest_xray", "hippocampus"}
        True
    """
    return _names_of_bundles_with(f"{MODELS}/{SAFE_MODEL}")


def _names_of_bundles_with(file: str) -> list[str]:
    return sorted(folder.name for folder in shipped("bundles").iterdir() if (folder / file).is_file())


def init_bundle(directory: str | Path, bundle: str = "diffae_2d") -> Path:
    """Copy a shipped bundle to ``directory``, and the overlays that can be used with it to ``configs/overlays``.

    A bundle with weights is stored without the files that are the same as in ``diffae_2d`` or ``diffae_3d``. In this
    case, ``diffae_2d`` or ``diffae_3d`` is copied first, and then the stored files. After an error, ``directory`` is as
    before.

    Raises:
        ConfigError: no shipped bundle has this name, or ``directory`` is not empty or cannot be a folder.
        MachineError: the disk is full, or ``directory`` cannot be written.
    """
    stored, target = shipped_bundle(bundle, or_weights=True), Path(directory)
    has_weights = bundle in names_with_weights()
    source = _untrained_counterpart(stored) if has_weights else stored
    try:
        with removed_on_failure(target):
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target, prefix=".new-") as folder:
                hidden = Path(folder)
                _copy_static(source, hidden)
                (hidden / CONFIGS / "overlays").mkdir()
                for overlay in overlays_of(source):
                    shutil.copy2(overlay, hidden / CONFIGS / "overlays")
                (hidden / MODELS).mkdir(exist_ok=True)
                if has_weights:
                    shutil.copytree(stored, hidden, dirs_exist_ok=True)
                    complete_weights(hidden)
                # Without ``configs``, which comes last, no training begins: its first weights would be random
                for part in sorted(hidden.iterdir(), key=lambda path: path.name == CONFIGS):
                    part.rename(target / part.name)
    except OSError as error:
        reason = error.strerror or "not all files could be copied"  # shutil raises one error for all files
        raise MachineError(f"{target.name}: cannot be written ({reason}); free space or choose another") from error
    return target


def overlays_of(bundle: Path) -> list[Path]:
    """The shipped overlays that can be used with a bundle: with its ``spatial_dims``, and only keys that it has."""
    config = json.loads((bundle / CONFIGS / TRAIN).read_text())
    usable = []
    for path in sorted(shipped("overlays").glob("*.json")):
        overlay = {key.removeprefix("+"): value for key, value in json.loads(path.read_text()).items()}
        usable_keys = config.keys() | references(overlay)
        has_same_dims = overlay.get("spatial_dims", config["spatial_dims"]) == config["spatial_dims"]
        if has_same_dims and {key.partition("#")[0] for key in overlay} <= usable_keys:
            usable.append(path)
    return usable


def _untrained_counterpart(bundle: Path) -> Path:
    config = json.loads((bundle / MODELS / CONFIG).read_text(encoding="utf-8"))
    return shipped_bundle(f"diffae_{config['spatial_dims']}d")


def check_new_folder(directory: str | Path) -> None:
    """Check that a folder is empty or can be created."""
    target = Path(directory)
    name = target.name or str(target)
    nearest = next((path for path in (target, *target.parents) if os.path.lexists(path)), Path())
    if not nearest.is_dir():
        kind = "a file" if nearest.exists() else "a broken link"
        raise ConfigError(f"{nearest.name}: is {kind}; choose a new folder")
    if not os.access(nearest, os.W_OK | os.X_OK | (os.R_OK if nearest == target else 0)):
        raise MachineError(f"{name}: cannot be written (Permission denied); choose another folder")
    if nearest == target and any(target.iterdir()):
        raise ConfigError(f"{name}: the folder is not empty; choose a new one")


@contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """If the block fails, remove what it wrote into a new folder, and the folders that it made."""
    check_new_folder(folder)
    new_folders = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the user needs to see the first error
            for content in folder.iterdir():
                shutil.rmtree(content) if content.is_dir() else content.unlink()
        for path in new_folders:
            with suppress(OSError):  # somebody else may have written into it
                path.rmdir()
        raise


def complete_bundle(bundle_root: str | Path, output_dir: str | Path) -> None:
    """Complete an output folder to a bundle, unless it is the bundle: with configurations, docs and licence.

    Its ``inference.json`` and ``evaluate.json`` then describe the trained model. A model card of other weights is
    marked as such.
    """
    if Path(bundle_root).resolve() != Path(output_dir).resolve():
        _copy_static(Path(bundle_root), Path(output_dir))
        describe_model(output_dir)
        source, weights = (models_folder(root) / MODEL for root in (bundle_root, output_dir))
        if source.is_file() and weights.is_file() and file_checksum(source) != file_checksum(weights):
            mark_replaced_weights(output_dir)


def export_bundle(bundle_root: str | Path, output_dir: str | Path, folder: Path) -> None:
    """Copy the trained bundle to ``folder``: configurations, docs, licence and weights, but nothing of the data.

    Paths and patterns that the user wrote into the configurations are removed, and so are configurations in YAML.
    Links to folders are not followed. Its ``train.json`` describes the trained model, too.

    Raises:
        ConfigError: a file that ends with ``.json`` is not JSON.
    """
    _copy_static(Path(bundle_root), folder, ignore=_not_copied_for_others)
    copy_model(Path(output_dir), folder)
    describe_model(folder, (TRAIN, INFERENCE, EVALUATE))
    for file in (folder / CONFIGS).rglob("*"):
        if file.is_file() and file.suffix != ".json":
            file.unlink()
    for file in folder.rglob("*.json"):
        _remove_private_values(file)


def _remove_private_values(file: Path) -> None:
    """Remove private values from a JSON file."""
    try:
        content = {"": json.loads(file.read_text())}  # it may be a list
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file.name}: is not a JSON file, so nothing was copied; repair or remove it") from error
    public = without_private_values(content)
    if public != content:
        write_json(file, public[""])


def copy_model(source: Path, target: Path) -> None:
    """Copy a trained model from one bundle to another, with its first stage, but without its checkpoint."""
    (target / MODELS).mkdir(exist_ok=True)
    names = [name for name in MODEL_FILES if name != CHECKPOINT]

    def copy(models: Path) -> None:
        for name in names:
            if (models / name).is_file():  # without config.json, configs/train.json describes the model
                shutil.copy2(models / name, target / MODELS / name)

    read_consistently(source, copy, names)


def _copy_static(source: Path, target: Path, ignore: Callable[[str, list[str]], list[str]] | None = None) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in _STATIC:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=ignore, dirs_exist_ok=True)
        elif (source / name).is_file():
            shutil.copy2(source / name, target / name)


def _not_copied_for_others(folder: str, names: list[str]) -> list[str]:
    """Links to folders, such as one with scans, broken links, and what is neither file nor folder."""
    paths = {name: Path(folder, name) for name in names}
    return [name for name, path in paths.items() if not path.is_file() and (path.is_symlink() or not path.is_dir())]
