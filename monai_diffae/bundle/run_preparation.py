"""What a bundle run takes from its folder before it starts: given images, and the values of a trained model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, load
from torch import nn

from monai_diffae.bundle.config import (
    is_called_by,
    model_config,
    running_config,
    running_parser,
    use_folder_of_config,
)
from monai_diffae.bundle.consistent_reading import read_consistently
from monai_diffae.bundle.described_model import model_values
from monai_diffae.bundle.given_data import use_given_data
from monai_diffae.bundle.json_files import read_values
from monai_diffae.bundle.latent_ddim import check_output_folder
from monai_diffae.bundle.layout import (
    CONFIG,
    DISTILL,
    FAST_PREFIX,
    LATENT_PREFIX,
    MODEL,
    MODELS,
    TRAIN,
    TRAIN_LATENT,
)
from monai_diffae.bundle.loading import set_values
from monai_diffae.bundle.own_tracking import use_own_tracking
from monai_diffae.bundle.run_messages import show_plain_messages_in_bundle_runs
from monai_diffae.bundle.training_settings import bundle_config, changes, overlap
from monai_diffae.bundle.warm_start import remembered_settings
from monai_diffae.bundle.weights import read_weights
from monai_diffae.bundle.writing import complete_publication
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)

_TRAININGS = {TRAIN: "", TRAIN_LATENT: LATENT_PREFIX, DISTILL: FAST_PREFIX}  # with the prefix of their files

_has_all_values: ContextVar[bool] = ContextVar("_has_all_values", default=False)


@contextmanager
def values_are_complete() -> Iterator[None]:
    """Within this, :func:`prepare_run` adds no values: the caller has read those of the trained model itself."""
    token = _has_all_values.set(True)
    try:
        yield
    finally:
        _has_all_values.reset(token)


def prepare_run(file: str = TRAIN) -> None:
    """Prepare a bundle run, as the first expression of ``initialize``.

    The run uses the folder of its configuration as ``bundle_root`` (see
    :func:`~monai_diffae.bundle.config.use_folder_of_config`). If the bundle is trained, the run describes
    the trained model: ``models/config.json`` replaces the values of ``configs``. So MONAI's tools build the network of
    ``models/model.pt``. A training that resumes or fine-tunes uses the settings in ``models/training.json``, and one
    that begins from a trained bundle (``start_from``) uses those of this bundle. Values that the run itself changes
    take precedence. A training with ``overwrite`` begins with the values of its file.

    A training also uses the bundle's own tracking (:func:`~monai_diffae.bundle.own_tracking.use_own_tracking`). The
    training of ``train.json`` can use images that an application lists
    (:func:`~monai_diffae.bundle.given_data.use_given_data`).

    If a publication was interrupted, it is completed, because MONAI reads only ``models/model.pt``.

    Args:
        file: the run's file in ``configs``.

    Raises:
        ConfigError: called from anywhere but an expression of a bundle's configuration, a file cannot be read, the
            output folder has the model of another bundle, or MONAI's ``load`` has read weights that were replaced
            meanwhile.
        CohortError: an application lists no usable image.
        MachineError: the files of an interrupted publication cannot be put in their places.
    """
    show_plain_messages_in_bundle_runs()
    parser = running_parser()
    use_folder_of_config()
    before = bundle_config(parser.get(), file)  # a publication changes inference.json, which the parser has read
    if complete_publication(_models(parser, file)) and is_called_by(load):
        # MONAI (1.6.1) reads the weights before it opens the workflow
        raise ConfigError(f"{MODEL}: was replaced by a newer model while it was loaded; load it again")
    if file == TRAIN:
        use_given_data()
    if file in (TRAIN_LATENT, DISTILL) and not _is_overwriting(parser):
        check_output_folder(*(parser.get_parsed_content(key) for key in ("bundle_root", "output_dir")))
    is_tracked = file in _TRAININGS and use_own_tracking(parser)
    if not _has_all_values.get():
        _use_trained_values(parser, file, before)
    if is_tracked:
        parser["mlflow"] = True  # also if the training that is resumed was not tracked


def check_trained_weights(network: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Check that a network is the one of the trained weights in a bundle's folder; without weights, it can be any.

    MONAI (1.6.1) loads those weights that fit, and ignores the others without a message.

    Args:
        network: the network of the running configuration, newly built.
        folder: the bundle's folder.

    Raises:
        ConfigError: the weights are those of another network.
        ScanError: the weights are damaged, or not finite.
        UnsafeInputError: reading the weights would run code.
    """
    running = running_config()

    def check(models: Path) -> None:
        if not (models / MODEL).is_file():
            return
        try:
            read_weights(models / MODEL, network)
        except ConfigError as error:
            before, now = (_network_values(config) for config in (read_values(models / CONFIG), running))
            keys = sorted(key for key in before.keys() & now.keys() if before[key] != now[key])
            if not keys:
                raise
            raise ConfigError(
                f"{MODEL}: belongs to another model with other values of {', '.join(keys)}; use its values, choose "
                "another output_dir, or set overwrite to train another model"
            ) from error

    read_consistently(folder, check)


def _use_trained_values(parser: ConfigParser, file: str, before: dict[str, Any]) -> None:
    """Replace values of the bundle's file by those of the trained model, unless the run changes them."""
    if not before:
        return
    settings, source = _remembered(parser, file) if file in _TRAININGS else ({}, "")
    model: dict[str, Any] = {}
    if file not in (TRAIN_LATENT, DISTILL) and not _is_overwriting(parser):
        model = read_values(_models(parser, file) / CONFIG)
    given = dict(changes(before, parser.get()))
    described = {key: value for key, value in model_values(model).items() if value != "???"}
    trained = {**settings, **dict(changes(before, {**before, **described}))}
    values = {key: value for key, value in trained.items() if not any(overlap(key, other) for other in given)}
    set_values(parser, values, "the configuration", f"configs/{file}")
    parser["imports"] = list(dict.fromkeys([*parser["imports"], *model.get("imports", [])]))
    if values:
        logger.log(
            logging.INFO if file in _TRAININGS else logging.WARNING,
            "the run uses the trained model's values of %s, from %s, not those of %s",
            ", ".join(sorted({key.partition("#")[0] for key in values})),
            source or f"{MODELS}/{CONFIG}",
            file,
        )


def _remembered(parser: ConfigParser, file: str) -> tuple[dict[str, Any], str]:
    return remembered_settings(
        parser.get_parsed_content("output_dir"),
        prefix=_TRAININGS[file],
        start_from=parser.get_parsed_content("start_from") if "start_from" in parser else None,
        overwrite=_is_overwriting(parser),
    )


def _models(parser: ConfigParser, file: str) -> Path:
    """The folder with the model that a run trains or uses."""
    root = parser.get_parsed_content("output_dir" if file in _TRAININGS else "bundle_root")
    return Path(str(root)) / MODELS


def _is_overwriting(parser: ConfigParser) -> bool:
    return parser.get("overwrite") is True


def _network_values(config: dict[str, Any]) -> dict[str, Any]:
    return model_values(model_config(config, roots=("network_def",)))
