"""Publish a trained model: put it in the place of another bundle's model in one step."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

from monai_diffae.bundle import layout
from monai_diffae.bundle.consistent_reading import read_consistently
from monai_diffae.bundle.model_card import mark_replaced_weights
from monai_diffae.bundle.model_check import check_model
from monai_diffae.bundle.writing import STAGED, WriteLock, replace_files
from monai_diffae.data.atomic import disk_errors
from monai_diffae.errors import ConfigError

_NAMES = (*layout.MODEL_FILES, *layout.LATENT_FILES, *layout.FAST_FILES)


def publish(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Replace the model of a bundle by that of another bundle, in one step.

    Weights, configuration, checkpoint, settings of the training, first stage and residuals of normal cases are
    replaced together. A process that loads the target meanwhile gets either the old or the new model. If this process
    is killed, either the old or the new model is complete, and the next publication or training of the bundle puts
    the files in order.

    A latent DDIM and a fast decoder of the target are kept unless the source has one. They are refused when they are
    loaded, because they belong to another autoencoder.

    Args:
        source: a trained bundle, which is only read.
        target: a bundle, trained or not.

    Raises:
        ConfigError: the source is not trained, its weights do not fit its configuration, the target is not a bundle,
            both are the same folder, or another process trains or publishes the target.
        ScanError: the weights of the source are damaged, or not finite.
        MachineError: the disk is full, or the target cannot be written; its model stays as it is.

    Example:
        >>> publish("my_model", "my_model")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_model: cannot be published to itself; choose another target
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve():
        raise ConfigError(f"{source.name}: cannot be published to itself; choose another target")
    if not (target / layout.CONFIGS / layout.TRAIN).is_file():
        raise ConfigError(f"{target.name}: is not a bundle (no configs/train.json); make one with monai-diffae init")
    models = target / layout.MODELS
    with WriteLock(models), tempfile.TemporaryDirectory(dir=models, prefix=STAGED) as folder:
        copies = read_consistently(source, partial(_copy, source, Path(folder)), _NAMES)
        writers = {name: partial(shutil.move, copy) for name, copy in copies.items()}
        # All files of a latent DDIM or fast decoder are replaced together: weights never get another's checkpoint.
        sets = (layout.LATENT_FILES, layout.FAST_FILES)
        replaced = [name for names in sets if not copies.keys().isdisjoint(names) for name in names]
        removed = (*layout.MODEL_FILES, *replaced)
        replace_files(models, writers, removed=removed)
        mark_replaced_weights(target)


def _copy(source: Path, folder: Path, models: Path) -> dict[str, Path]:
    """Check a model and copy its files to a folder; the copies by their names."""
    layout.check_trained(source, models, layout.MODEL, layout.CONFIG)
    check_model(source, models / layout.CONFIG, models / layout.MODEL)
    copies = {name: folder / name for name in _NAMES if (models / name).is_file()}
    with disk_errors(layout.MODELS):
        for name, copy in copies.items():
            shutil.copyfile(models / name, copy)
    return copies
