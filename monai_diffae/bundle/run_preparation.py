"""What a bundle run takes from its folder before it starts: given images, and the values of a trained model."""

# tested in tests/bundles/test_monai_tools.py

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from monai_diffae.bundle.config import model_config, running_config, running_parser, use_folder_of_config
from monai_diffae.bundle.consistent_reading import read_consistently
from monai_diffae.bundle.described_model import model_values
from monai_diffae.bundle.given_data import use_given_data
from monai_diffae.bundle.layout import CONFIG, MODEL, MODELS, TRAIN, newest_files
from monai_diffae.bundle.loading import set_values
from monai_diffae.bundle.own_tracking import use_own_tracking
from monai_diffae.bundle.run_messages import show_plain_messages_in_bundle_runs
from monai_diffae.bundle.training_settings import bundle_config, changes, overlap, read_training_settings
from monai_diffae.bundle.weights import read_weights
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)

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
    the trained model: ``models/config.json``, and for ``train.json`` also the settings in ``models/training.json``,
    replace the values of ``configs``. So MONAI's tools build the network of ``models/model.pt``, and a training is
    resumed with its settings. Values that the run itself changes take precedence. A training with ``overwrite`` begins
    with the values of ``train.json``.

    A training also uses images that an application lists (:func:`~monai_diffae.bundle.given_data.use_given_data`),
    and the bundle's own tracking (:func:`~monai_diffae.bundle.own_tracking.use_own_tracking`).

    Args:
        file: the run's file in ``configs``.

    Raises:
        ConfigError: called from anywhere but an expression of a bundle's configuration, or a file cannot be read.
        CohortError: an application lists no usable image.
    """
    show_plain_messages_in_bundle_runs()
    parser = running_parser()
    use_folder_of_config()
    if file == TRAIN:
        use_given_data()
        use_own_tracking(parser)
    if not _has_all_values.get() and parser.get("overwrite") is not True:
        _use_trained_values(parser, file)


def check_trained_weights(network: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Check that a network is the one of the trained weights in a bundle's folder; without weights, it can be any.

    MONAI (1.6.1) loads those weights that fit, and says nothing of the others.

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
            before, now = (_network_values(config) for config in (_content(models / CONFIG), running))
            keys = sorted(key for key in before.keys() & now.keys() if before[key] != now[key])
            if not keys:
                raise
            raise ConfigError(
                f"{MODEL}: belongs to another model with other values of {', '.join(keys)}; use its values, choose "
                "another output_dir, or set overwrite to train another model"
            ) from error

    read_consistently(folder, check)


def _use_trained_values(parser: ConfigParser, file: str) -> None:
    """Replace values of the bundle's file by those of the trained model, unless the run changes them."""
    is_training = file == TRAIN
    models = newest_files(Path(str(parser.get_parsed_content("output_dir" if is_training else "bundle_root"))) / MODELS)
    model, before = _content(models / CONFIG), bundle_config(parser.get(), file)
    if not (model and before):
        return
    given = dict(changes(before, parser.get()))
    described = {key: value for key, value in model_values(model).items() if value != "???"}
    settings = read_training_settings(models) if is_training else {}
    trained = {**settings, **dict(changes(before, {**before, **described}))}
    values = {key: value for key, value in trained.items() if not any(overlap(key, other) for other in given)}
    set_values(parser, values, "the configuration", f"configs/{file}")
    parser["imports"] = list(dict.fromkeys([*parser["imports"], *model.get("imports", [])]))
    if values:
        logger.log(
            logging.INFO if is_training else logging.WARNING,
            "the run uses the trained model's values of %s, from models/config.json, not those of %s",
            ", ".join(sorted({key.partition("#")[0] for key in values})),
            file,
        )


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file.name}: cannot be read; copy the bundle again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file.name}: does not describe a model; copy the bundle again")
    return content


def _network_values(config: dict[str, Any]) -> dict[str, Any]:
    return model_values(model_config(config, roots=("network_def",)))
