"""A training on images that an application lists, such as MONAI Label, in place of a cohort."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diffae.bundle.config import running_parser
from monai_diffae.bundle.config_values import is_formula
from monai_diffae.bundle.layout import CONFIGS, MODEL, MODELS, TRAIN
from monai_diffae.bundle.loading import set_values
from monai_diffae.bundle.training_settings import overlap, training_settings
from monai_diffae.bundle.warm_start import start_settings
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.errors import CohortError, ConfigError

logger = logging.getLogger(__name__)

_TRAIN, _VAL = "train#dataset#data", "validate#dataset#data"


def use_given_data() -> None:
    """In a bundle run whose ``train#dataset#data`` is a list of items, train on exactly these images.

    MONAI Label trains a bundle by ``configs/train.json``, with two lists of items in place of the cohort's and with a
    ``CheckpointLoader`` among the handlers. The lists become the cohort, so that its fingerprint is that of the images
    seen, volumes are cut into slices for a 2D model, and unreadable scans are listed. If there is a
    ``CheckpointLoader``, a new training begins with the bundle's weights and with the settings of its training, and
    replaces them; values that the run itself sets take precedence. Without lists, nothing happens.

    Images of a patient who is in both lists are not used for validation, which is logged.

    Raises:
        ConfigError: called from anywhere but an expression of a bundle's configuration, only one of the two is a list,
            or the training would begin with other weights than ``models/model.pt``.
        CohortError: a list has no usable image.
    """
    parser = running_parser()
    config: dict[str, Any] = parser.get()
    lists = {id: parser.get(id) for id in (_TRAIN, _VAL)}
    if all(is_formula(data) for data in lists.values()):
        return
    if any(is_formula(data) for data in lists.values()):
        listed, other = (id for id in sorted(lists, key=lambda id: is_formula(lists[id])))
        raise ConfigError(
            f"{other}: must be a list, because {listed} is one; give both (in MONAI Label, set val_split above 0)"
        )
    root = Path(str(config["bundle_root"]))
    original = json.loads((root / CONFIGS / TRAIN).read_text())
    max_epochs = parser.get("train#trainer#max_epochs")
    handlers, loaded = _without_loader(parser.get("train#handlers"))
    values: dict[str, Any] = {
        **{id: _value(original, id) for id in (_TRAIN, _VAL)},
        "dataset_dir": str(_datalist(parser, lists, config)),
        "columns": {},
        "train#handlers": handlers,
    }
    if not is_formula(max_epochs):
        values |= {"max_epochs": max_epochs, "train#trainer#max_epochs": "@max_epochs"}
    set_values(parser, values, "the configuration", TRAIN)
    if loaded is not None:
        set_values(parser, _start(root, loaded, parser.get()), "the configuration", TRAIN)


def _start(root: Path, loaded: str, config: dict[str, Any]) -> dict[str, Any]:
    """The values with which a training begins from the bundle's weights, and replaces them."""
    weights = root / MODELS / MODEL
    if Path(loaded).resolve() != weights.resolve():
        raise ConfigError(
            f"{Path(loaded).name}: training can start only from models/model.pt; set model_filename to model.pt"
        )
    given = training_settings(config)
    settings = {
        id: value for id, value in start_settings(root).items() if not any(overlap(id, other) for other in given)
    }
    return {**settings, "start_from": str(root), "overwrite": True}


def _datalist(parser: object, lists: Mapping[str, Sequence[Mapping[str, Any]]], config: Mapping[str, Any]) -> Path:
    """Write a MONAI datalist of the images, which exists as long as the run."""
    keys = list(config["image_keys"])
    for id, items in lists.items():
        if not items:
            todo = "label more images, or choose another val_split"
            raise CohortError(f"{id}: there is no image; in MONAI Label, {todo}")
    entries = {id: [{key: item.get(key) for key in keys} for item in items] for id, items in lists.items()}
    folder = Path(tempfile.mkdtemp(prefix="diffae-data-"))
    weakref.finalize(parser, shutil.rmtree, folder, ignore_errors=True)
    file = folder / "given_images.json"
    # as one list without splits, because a patient who is in both would be an error
    file.write_text(json.dumps([*entries[_TRAIN], *entries[_VAL]]))
    cases = read_cohort(file, image_keys=keys, patient_pattern=config.get("patient_pattern"))
    num_train = len(entries[_TRAIN])
    trained = {case.patient for case in cases[:num_train]}
    kept = [entry for entry, case in zip(entries[_VAL], cases[num_train:], strict=True) if case.patient not in trained]
    if not kept:
        raise CohortError(f"{_VAL}: all of its patients are also trained on; give images of other patients")
    if len(kept) < len(entries[_VAL]):
        logger.warning(
            "%d of %d images are not used for validation, as their patients are also trained on",
            len(entries[_VAL]) - len(kept), len(entries[_VAL]),
        )  # fmt: skip
    file.write_text(json.dumps({"training": entries[_TRAIN], "validation": kept}))
    return file


def _without_loader(handlers: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str | None]:
    """Handlers without MONAI's CheckpointLoader, and the file that it would load."""
    # It would load the weights into the trained network only, and not into their average.
    loaders = [handler for handler in handlers if handler.get("_target_") == "CheckpointLoader"]
    others = [handler for handler in handlers if handler not in loaders]
    return others, str(loaders[0]["load_path"]) if loaders else None


def _value(config: Mapping[str, Any], id: str) -> Any:
    value: Any = config
    for key in id.split("#"):
        value = value[key]
    return value
