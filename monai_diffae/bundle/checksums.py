"""SHA-256 of a bundle's weights and configuration."""

from __future__ import annotations

import os

from monai_diffae.bundle.layout import MODEL, check_trained, model_config_file, models_folder
from monai_diffae.data.file_checksums import cached_checksum, file_checksum


def checksum(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of a bundle's weights.

    The weights of a first stage are not included, because a model only loads the first stage of its own training.

    Raises:
        ConfigError: the bundle is not trained.
    """
    models = models_folder(directory)
    check_trained(directory, models)
    return cached_checksum(models / MODEL)


def config_checksum(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of the file that describes a bundle's model."""
    return file_checksum(model_config_file(directory))
