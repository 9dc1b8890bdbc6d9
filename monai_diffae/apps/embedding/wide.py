"""Wide features: principal components of what the encoder computes before its last layer, and of oriented gradients.

The last layer keeps what the decoder needs; a label may need what it leaves out. Oriented gradients need no training,
and differ less between hospitals than intensities. Both parts are scaled to a total variance of 1.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from monai_diffae.apps.embedding.baseline_encoders import training_images
from monai_diffae.apps.session import Session
from monai_diffae.bundle.folders import WriteLock
from monai_diffae.bundle.layout import WIDE, models_folder
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.bundle.model_file import read_model, write_model
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import ConfigError
from monai_diffae.latents.components import PixelComponents
from monai_diffae.networks import OrientedGradients

logger = logging.getLogger(__name__)

WIDE_CHANNELS = 256
"""The most wide features; fewer training cases give fewer."""
_MOST_CASES = 10_000  # training cases that the components are fitted to


class NotFittedError(ConfigError):
    """The bundle has no wide features of its present weights."""


class WideEncoder(nn.Module):
    """An autoencoder whose codes are z_sem (B, Z), unless it is left out, and K wide features."""

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
        wide = (torch.cat(features, dim=1) - self.mean) @ self.axes.T
        if not self.with_z_sem:
            return wide
        return torch.cat([self.network.encoder.project(features[0]), wide], dim=1)  # type: ignore[union-attr, operator]


class _FeatureEncoder(nn.Module):
    """An autoencoder whose codes are what the wide features are components of."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.spatial_dims: int = network.spatial_dims  # type: ignore[assignment]
        self.widths: list[int] = []

    def encode(self, images: Tensor) -> Tensor:
        parts = _features(self.network, images)
        self.widths = [part.shape[1] for part in parts]
        return torch.cat(parts, dim=1)


def _features(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The parts of which wide features are components, each (B, F); the first is what the last layer projects."""
    gradients = OrientedGradients(images.shape[2:]).to(images.device)
    return [network.encoder.features(images), gradients(images)]  # type: ignore[union-attr, operator]


def with_wide_features(trained: TrainedBundle, *, with_z_sem: bool = True) -> TrainedBundle:
    """The bundle with a :class:`WideEncoder` for its network, from ``models/wide.safetensors``."""
    if not hasattr(trained.network.encoder, "features"):
        kind = type(trained.network.encoder).__name__
        raise ConfigError(f"features: the encoder {kind} has no wide features; use z")
    if not trained.has_wide:
        raise NotFittedError(
            f"features: wide features were not fitted for the present weights of {trained.folder.name}; first embed "
            "the training cohort with features wide, in one process, without overrides, where the bundle can be written"
        )
    file = read_model(models_folder(trained.folder) / WIDE, "wide", is_built=False)
    network = WideEncoder(trained.network, file.tensors["mean"], file.tensors["axes"].float(), with_z_sem)
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
        if not (may_fit and session.can_fit_wide):
            raise
    mean, axes = _fit(session)
    models = models_folder(trained.folder)
    with WriteLock(models):
        tensors = {"mean": mean, "axes": axes.half()}  # a file of half the size
        write_model(models / WIDE, "wide", tensors, {"autoencoder_sha256": trained.sha256})
    logger.info("models/%s: %d components of the training cases' features", WIDE, len(axes))
    return replace(session, trained=with_wide_features(trained))


def _fit(session: Session) -> tuple[Tensor, Tensor]:
    """The mean [F] and the components [K, F] of the features of at most ``_MOST_CASES`` training cases."""
    trained = session.trained
    encoder = _FeatureEncoder(trained.network).eval()

    def encode(images: Tensor) -> Tensor:
        return trained.inferer.encode(images, encoder)

    least = WIDE_CHANNELS + 1
    batches = training_images(session, least, encode, text="wide features", most_cases=_MOST_CASES)
    first = next(batches)
    parts = np.split(first, np.cumsum(encoder.widths)[:-1], axis=1)
    variances = np.array([part.var(axis=0).sum() for part in parts])
    scales = np.divide(1, np.sqrt(variances), out=np.zeros(len(parts)), where=variances > 0)
    scale = np.repeat(scales, encoder.widths).astype(np.float32)
    components = PixelComponents.fit((batch * scale for batch in chain([first], batches)), WIDE_CHANNELS)
    mean = np.divide(components.mean, scale, out=first.mean(axis=0), where=scale > 0)
    return torch.from_numpy(mean).float(), torch.from_numpy(components.axes * scale).float()
