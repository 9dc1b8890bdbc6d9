"""Bundle folders: a shipped one copied out, one completed after training, one exported."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from monai_diffae.bundle.config_values import references
from monai_diffae.bundle.private_values import without_private_values
from monai_diffae.data.atomic import write_json
from monai_diffae.errors import ConfigError, MachineError

if TYPE_CHECKING:
    pass


_PACKAGE = Path(__file__).parents[1]


_STATIC = ("LICENSE", "docs", "configs")


def shipped(kind: str) -> Path:
    """The folder of the shipped ``bundles`` or config ``overlays``: in the wheel, or beside it in a checkout."""
    in_wheel = _PACKAGE / kind
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / {"overlays": "configs"}.get(kind, kind)


def shipped_bundle(name: str) -> Path:
    """The folder of a shipped bundle.

    Raises:
        ConfigError: there is none of that name.
    """
    folder = shipped("bundles") / name
    if not (folder / "configs" / "train.json").is_file():
        names = sorted(p.name for p in shipped("bundles").iterdir() if (p / "configs").is_dir())
        raise ConfigError(f"bundle: there is no {name!r}; choose one of: {', '.join(names)}")
    return folder


def init_bundle(directory: str | Path, bundle: str = "diffae_2d") -> Path:
    """Copy a shipped bundle to ``directory``, with the config overlays that go with it in ``configs/overlays``.

    Raises:
        ConfigError: no such bundle, or ``directory`` is not empty, or is or lies below a file.
        MachineError: the disk is full, or ``directory`` may not be written.
    """
    source, target = shipped_bundle(bundle), Path(directory)
    check_new_folder(target)
    try:
        _copy_static(source, target)
        (target / "configs" / "overlays").mkdir()
        for overlay in overlays_of(source):
            shutil.copy2(overlay, target / "configs" / "overlays")
        (target / "models").mkdir(exist_ok=True)
    except OSError as error:
        reason = error.strerror or "not all of the bundle's files could be copied"  # shutil gives a list of errors
        raise MachineError(f"{target.name}: cannot be written ({reason}); free space or choose another") from error
    return target


def overlays_of(bundle: Path) -> list[Path]:
    """The shipped overlays for a bundle: of its ``spatial_dims``, where they name any, and with keys that it has."""
    config = json.loads((bundle / "configs" / "train.json").read_text())
    fitting = []
    for path in sorted(shipped("overlays").glob("*.json")):
        overlay = {key.removeprefix("+"): value for key, value in json.loads(path.read_text()).items()}
        known = config.keys() | references(overlay)
        is_of_dims = overlay.get("spatial_dims", config["spatial_dims"]) == config["spatial_dims"]
        if is_of_dims and {key.partition("#")[0] for key in overlay} <= known:
            fitting.append(path)
    return fitting


def check_new_folder(directory: str | Path) -> None:
    """Refuse a folder that holds something already, or that cannot be made.

    Raises:
        ConfigError: it is not empty, or is or lies below a file or a link that leads nowhere.
        MachineError: it may not be written.
    """
    target = Path(directory)
    name = target.name or str(target)
    nearest = next((path for path in (target, *target.parents) if os.path.lexists(path)), Path())
    if not nearest.is_dir():
        what = "a file" if nearest.exists() else "a link that leads nowhere"
        raise ConfigError(f"{nearest.name}: is {what}; name a new folder")
    if not os.access(nearest, os.W_OK | os.X_OK | (os.R_OK if nearest == target else 0)):
        raise MachineError(f"{name}: cannot be written (Permission denied); choose another folder")
    if nearest == target and any(target.iterdir()):
        raise ConfigError(f"{name}: the folder is not empty; name a new one, so that nothing is overwritten")


def complete_bundle(bundle_root: str | Path, output_dir: str | Path) -> None:
    """Make a bundle of an output folder elsewhere: the configs, docs and licence beside the weights."""
    if Path(bundle_root).resolve() != Path(output_dir).resolve():
        _copy_static(Path(bundle_root), Path(output_dir))


def export_bundle(bundle_root: str | Path, output_dir: str | Path, folder: Path) -> None:
    """Fill ``folder`` with the trained bundle: configs, docs, licence and weights, nothing of the data.

    Where the user wrote paths or patterns into the configs, they are taken out again; configs in YAML are left out.
    """
    _copy_static(Path(bundle_root), folder)
    copy_model(Path(output_dir) / "models", folder / "models")
    for file in (folder / "configs").rglob("*"):
        if file.is_file() and file.suffix != ".json":
            file.unlink()
    for file in folder.rglob("*.json"):
        config = json.loads(file.read_text())
        shown = without_private_values(config)
        if shown != config:
            write_json(file, shown)


def copy_model(source: Path, target: Path) -> None:
    """Copy what a trained model is from one ``models`` folder to another, with the first stage that it may have."""
    target.mkdir(exist_ok=True)
    for name in ("model.pt", "config.json", "first_stage_model.pt", "first_stage_config.json"):
        if (source / name).is_file():  # without config.json, the model is what configs/train.json says
            shutil.copy2(source / name, target / name)


def _copy_static(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in _STATIC:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        elif (source / name).is_file():
            shutil.copy2(source / name, target / name)
