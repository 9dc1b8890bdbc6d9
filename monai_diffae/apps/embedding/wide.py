"""Wide features: principal components of the features from which the encoder's last layer computes z_sem."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_diffae.apps.embedding.baseline_encoders import training_images
from monai_diffae.apps.session import Session
from monai_diffae.bundle.folders import WriteLock
from monai_diffae.bundle.layout import WIDE, models_folder
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.bundle.model_file import read_model, write_model
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import ConfigError
from monai_diffae.inferers.reconstruction import encode_exactly
from monai_diffae.latents.components import PixelComponents

logger = logging.getLogger(__name__)

WIDE_CHANNELS = 256
"""The most wide features; fewer training cases give fewer."""
_MOST_CASES = 10_000  # training cases that the components are fitted to


class NotFittedError(ConfigError):
    """The bundle has no wide features of its present weights."""


class WideEncoder(nn.Module):
    """An autoencoder whose codes are z_sem (B, Z) and, after it, K wide features.

    Args:
        network: the trained autoencoder.
        mean: ``[F]``, the mean features of the training cases.
        axes: ``[K, F]``, their principal components, all divided by the same number so that the mean variance is 1.
        with_z_sem: whether the codes begin with z_sem.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, axes: Tensor, with_z_sem: bool = True) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("axes", axes)
        self.with_z_sem = with_z_sem
        self.z_channels = network.z_channels if with_z_sem else len(axes)
        self.spatial_dims = network.spatial_dims

    def encode(self, images: Tensor) -> Tensor:
        """The codes (B, Z + K) of images (B, C, *S)."""
        features = _features(self.network, images)
        wide = (features - self.mean) @ self.axes.T
        if not self.with_z_sem:
            return wide
        return torch.cat([self.network.encoder.project(features), wide], dim=1)  # type: ignore[union-attr, operator]


class _FeatureEncoder(nn.Module):
    """An autoencoder whose codes are the features (B, F) before the encoder's last layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.spatial_dims: int = network.spatial_dims  # type: ignore[assignment]

    def encode(self, images: Tensor) -> Tensor:
        return _features(self.network, images)


def _features(network: nn.Module, images: Tensor) -> Tensor:
    features: Tensor = network.encoder.features(images)  # type: ignore[union-attr, operator]
    return features


def with_wide_features(trained: TrainedBundle, *, with_z_sem: bool = True) -> TrainedBundle:
    """The bundle with a :class:`WideEncoder` for its network, from ``models/wide.safetensors``."""
    if not hasattr(trained.network.encoder, "features"):
        kind = type(trained.network.encoder).__name__
        raise ConfigError(f"features: the encoder {kind} has no wide features; use z")
    path = models_folder(trained.folder) / WIDE
    file = read_model(path, "wide", is_built=False) if path.is_file() else None
    if file is None or file.description.get("autoencoder_sha256") != trained.sha256:  # of weights that were replaced
        raise NotFittedError(
            f"features: {trained.folder.name} has no models/{WIDE} of its present weights; embed the cohort of its "
            "training with features wide first, in one process, which fits and stores them"
        )
    network = WideEncoder(trained.network, file.tensors["mean"], file.tensors["axes"], with_z_sem)
    return replace(trained, network=network.to(trained.device).eval())


def wide_checksum(bundle: str | os.PathLike[str]) -> str:
    """SHA-256 of the file of a bundle's wide features; empty if there is none."""
    path = models_folder(bundle) / WIDE
    return file_checksum(path) if path.is_file() else ""


def fit_or_load(session: Session, *, may_fit: bool) -> Session:
    """The session with wide features; unless they are stored, they are fitted to the cases of the model's training."""
    trained = session.trained
    try:
        return replace(session, trained=with_wide_features(trained))
    except NotFittedError:
        if not (session.may_be_of_training and may_fit):
            raise
    components = PixelComponents.fit(_training_features(session), WIDE_CHANNELS)
    tensors = {"mean": torch.from_numpy(components.mean), "axes": torch.from_numpy(components.axes)}
    models = models_folder(trained.folder)
    with WriteLock(models):
        write_model(models / WIDE, "wide", tensors, {"autoencoder_sha256": trained.sha256})
    logger.info("models/%s: %d components of the training cases' features", WIDE, len(components.axes))
    return replace(session, trained=with_wide_features(trained))


def _training_features(session: Session) -> Iterator[NDArray[np.float32]]:
    """The features of at most ``_MOST_CASES`` training cases, in batches."""
    trained = session.trained
    encoder = _FeatureEncoder(trained.network).eval()
    for images in training_images(session, WIDE_CHANNELS + 1, text="wide features", most_cases=_MOST_CASES):
        yield encode_exactly(torch.from_numpy(images).to(trained.device), encoder, trained.inferer).cpu().numpy()
