"""Encoders beside a trained one: random weights, pixels, typical patches, 2D networks; and wide features."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Encoding, Reading, Run
from monai_diffae.bundle.folders import WriteLock
from monai_diffae.bundle.layout import WIDE, models_folder
from monai_diffae.bundle.loading import load_untrained
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.bundle.model_file import read_model, write_model
from monai_diffae.data.fingerprints import digest, file_checksum
from monai_diffae.data.progress import progress
from monai_diffae.data.streamed import read_stream
from monai_diffae.errors import CohortError, ConfigError, MachineError, quoted
from monai_diffae.latents.statistics import PixelComponents
from monai_diffae.networks import PatchWords
from monai_diffae.networks.anchored_encoder import MOST_PIXELS
from monai_diffae.networks.blocks import CellMeans
from monai_diffae.networks.encoder_adapter import PixelEncoder, PlanarAdapter
from monai_diffae.official.checkpoint_files import named_after, read_weights
from monai_diffae.policies import PathLike

logger = logging.getLogger(__name__)

_BATCH_BYTES = 2**29
_READ_AHEAD = 16
_MOST_COLUMNS = 1024
_MOST_FOR_WORDS = 2000  # training cases in which words are found
_HEADS = ("fc", "classifier", "heads", "head")
_LAYERS = {  # of torchvision's networks, by the beginning of their name
    "alexnet": ("features.4", "features.7", "features.9", "features.11"),
    "resnet": ("layer2", "layer3", "layer4"),
    "convnext": ("features.3", "features.5", "features.7"),
    "vit": ("encoder.ln",),
}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def open_baseline(
    encoding: Encoding, bundle: Path, cohort: Path, *, reading: Reading, run: Run
) -> tuple[Session, dict[str, Any]]:
    """Open a cohort with an encoder that needs no training, in the place of a trained bundle's; and its description."""
    trained = load_untrained(bundle, run.device, run.overrides, encoding.seed)
    session = Session.of(trained, cohort, reading=reading, run=run)
    described: dict[str, Any] = {"encoder": encoding.encoder}
    if encoding.encoder == "untrained":
        return session, described
    if encoding.encoder in ("pca", "words"):
        fixed = nn.Flatten() if encoding.encoder == "pca" else _fitted_words(session)
        return _with_components(session, trained.z_channels, fixed, encoding.encoder), described
    network = open_backbone(encoding, trained.config).to(trained.device)
    weights = file_checksum(str(encoding.weights))
    described |= {"backbone": encoding.backbone, "layers": network.layers, "weights": weights}
    session = _with_components(session, _MOST_COLUMNS, network, json.dumps(described))
    logger.info(
        "planar: %d features of %s become %d principal components of the training cases",
        network.out_features,
        encoding.backbone,
        session.trained.z_channels,
    )
    return session, described


def open_backbone(encoding: Encoding, config: Mapping[str, Any]) -> PlanarAdapter:
    """A 2D network with the user's weights as an encoder of images that a bundle's configuration describes."""
    if encoding.weights is None:
        raise ConfigError("weights: planar needs the file of a network's weights, as nothing is downloaded; give it")
    family = next((name for name in _LAYERS if encoding.backbone.startswith(name)), None)
    if family is None and not encoding.layers:
        raise ConfigError(f"layers: planar has no default for {quoted(encoding.backbone)}; name some of its layers")
    side = 112 if config["spatial_dims"] == 3 and family != "vit" else 224
    network, head, prepared = _backbone(encoding.backbone, side)
    adapter = PlanarAdapter(
        network,
        encoding.layers or _LAYERS[family or ""],
        config["spatial_dims"],
        head=head,
        in_channels=config["in_channels"],
        model_range=config["model_range"],
        **prepared,
    )
    with named_after(encoding.weights):
        adapter.load_pretrained(read_weights(encoding.weights), (*_HEADS, "mask_token"))
    return adapter


def _backbone(name: str, side: int) -> tuple[nn.Module, str | None, dict[str, Any]]:
    """A network with random weights, its head, and how images are prepared for it."""
    package = "timm" if name.startswith("timm:") else "torchvision"
    try:
        if package == "timm":
            network = importlib.import_module(package).create_model(name.removeprefix("timm:"), num_classes=0)
            settings = network.default_cfg
            prepared = {"size": settings["input_size"][1:], "mean": settings["mean"], "std": settings["std"]}
            return network, None, prepared
        network = importlib.import_module("torchvision.models").get_model(name, weights=None)
    except ImportError as error:
        raise MachineError(f"backbone: {name} needs the package {package}: pip install {package}") from error
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"backbone: there is no {quoted(name)}; name a network of torchvision, such as resnet18, or timm:NAME"
        ) from error
    return network, next((head for head in _HEADS if hasattr(network, head)), None), {"size": (side, side), **_IMAGENET}


def _with_components(session: Session, num: int, network: nn.Module, name: str) -> Session:
    """The session with an encoder fitted to the features that a network gives the images of its training cases."""
    trained = session.trained
    text, most = "principal components", 4 * _MOST_COLUMNS if isinstance(network, PlanarAdapter) else None
    components = PixelComponents.fit(training_images(session, num + 1, network, text=text, most_cases=most), num)
    if len(components.axes) < num and most is None:
        logger.info("%s: %d components, as there are not more images or features", name, len(components.axes))
    encoder = PixelEncoder(components.mean, components.axes, network).to(trained.device).eval()
    sha256 = digest(name, components.mean, components.axes)
    return replace(session, trained=replace(trained, network=encoder, sha256=sha256))


def training_images(
    session: Session, num_least: int, network: Callable[[Tensor], Tensor], *, text: str, most_cases: int | None
) -> Iterator[NDArray[np.float32]]:
    """What a network makes of the readable training images, in bounded batches of at least ``num_least``."""
    key, cases = session.encoder_key, [case for case in session.cohort.cases if case.split == "train"]
    if most_cases is not None:  # in random order: a table may be sorted by hospital
        cases = [cases[i] for i in np.random.default_rng(0).permutation(len(cases))[:most_cases]]
    items, workers = [case.item() for case in cases], session.reading.workers_for(len(cases))
    stream = read_stream(items, session.trained.preprocessing, (key,), workers, _READ_AHEAD)
    batch: list[NDArray[np.float32]] = []
    shape = None
    with progress(len(cases), f"fitting {text} to {len(cases)} training cases") as advance:
        for result in stream:
            # cases that cannot be used are listed as failures when they are encoded
            if not isinstance(result, Exception) and result[key].shape == (shape or result[key].shape):
                shape = result[key].shape
                image = torch.from_numpy(result[key])[None].to(session.trained.device)
                batch.append(network(image)[0].cpu().numpy())
                size = max(num_least, _BATCH_BYTES // batch[0].nbytes)
                if len(batch) == 2 * size:  # so that the last batch has at least ``size``
                    yield np.stack(batch[:size])
                    batch = batch[size:]
            advance()
    if len(batch) < 2:
        raise CohortError(
            f"{text} are fitted to training images, but only {len(batch)} of {len(cases)} "
            "training cases can be used; give a cohort with training cases"
        )
    yield np.stack(batch)


def _fitted_words(session: Session) -> PatchWords:
    """The typical patches of the training images, as the bundle's encoder sees these."""
    trained, small = session.trained, _SmallImages().eval()
    batches = training_images(
        session, 2, lambda images: trained.inferer.encode(images, small), text="patches", most_cases=_MOST_FOR_WORDS
    )
    images = torch.from_numpy(np.concatenate([*batches]))
    words = PatchWords(images.shape[2:], images.shape[1])
    words.fit(images)
    return words.to(trained.device)


class _SmallImages(nn.Module):
    """Encodes images (B, C, *S) to themselves, averaged to what words need."""

    def encode(self, images: Tensor) -> Tensor:
        most = MOST_PIXELS[images.ndim - 2]
        return CellMeans([min(side, most) for side in images.shape[2:]])(images)


# -- wide features -----------------------------------------------------------------------------------------------------
# Principal components of what the encoder computes before its last layer, and of how much patches resemble typical ones
# (PatchWords), scaled to total variances of 1 and 3. The last layer keeps what the decoder needs; a label may need what
# it leaves out. Words are found without labels, and differ less between hospitals than intensities. Weights chosen for
# each label, by inner cross-validation, were not better for seven labels of four data sets.

WIDE_CHANNELS = 256
"""The most wide features; fewer training cases give fewer."""
_VARIANCES = (1, 3)  # of the encoder's features and of the words
_MOST_CASES = 10_000  # training cases that the components are fitted to


class _FeatureEncoder(nn.Module):
    """An autoencoder whose codes are what the wide features are components of."""

    def __init__(self, network: nn.Module, words: PatchWords) -> None:
        super().__init__()
        self.network = network
        self.words = words
        self.spatial_dims: int = network.spatial_dims  # type: ignore[assignment]

    def encode(self, images: Tensor) -> Tensor:
        return torch.cat([self.network.encoder.features(images), self.words(images)], dim=1)  # type: ignore[union-attr, operator]


class WideEncoder(_FeatureEncoder):
    """An autoencoder whose codes are z_sem (B, Z), unless it is left out, and K wide features."""

    mean: Tensor
    axes: Tensor

    def __init__(
        self, network: nn.Module, words: PatchWords, mean: Tensor, axes: Tensor, with_z_sem: bool = True
    ) -> None:
        super().__init__(network, words)
        self.register_buffer("mean", mean)
        self.register_buffer("axes", axes)
        self.with_z_sem = with_z_sem
        self.z_channels = network.z_channels if with_z_sem else len(axes)

    def encode(self, images: Tensor) -> Tensor:
        """The codes (B, Z + K) of images (B, C, *S)."""
        features = super().encode(images)
        wide = (features - self.mean) @ self.axes.T
        if not self.with_z_sem:
            return wide
        own = features[:, : -self.words.out_features].contiguous()
        return torch.cat([self.network.encoder.project(own), wide], dim=1)  # type: ignore[union-attr, operator]


def with_wide_features(trained: TrainedBundle, *, with_z_sem: bool = True) -> TrainedBundle:
    """The bundle with a :class:`WideEncoder` for its network, from ``models/wide.safetensors``."""
    if not hasattr(trained.network.encoder, "features"):
        kind = type(trained.network.encoder).__name__
        raise ConfigError(f"features: the encoder {kind} has no wide features; use z")
    if not trained.has_wide:
        raise ConfigError(
            f"features: wide features were not fitted for the present weights of {trained.folder.name}; first embed "
            "the training cohort with features wide, in one process, without overrides, where the bundle can be written"
        )
    file = read_model(models_folder(trained.folder) / WIDE, "wide", is_built=False)
    words = PatchWords(file.description["size"], file.tensors["words.filters"].shape[1])
    file.load_into(words, "words.")
    network = WideEncoder(trained.network, words, file.tensors["mean"], file.tensors["axes"].float(), with_z_sem)
    return replace(trained, network=network.to(trained.device).eval())


def wide_checksum(bundle: PathLike) -> str:
    """SHA-256 of the file of a bundle's wide features; empty if there is none."""
    path = models_folder(bundle) / WIDE
    return file_checksum(path) if path.is_file() else ""


def fit_or_load(session: Session, *, may_fit: bool) -> Session:
    """The session with wide features; unless they are stored, they are fitted to the cases of the model's training."""
    trained = session.trained
    if may_fit and not trained.has_wide and hasattr(trained.network.encoder, "features") and session.can_fit_wide:
        _fit_wide(session)
    return replace(session, trained=with_wide_features(trained))


def _fit_wide(session: Session) -> None:
    """Fit wide features to the training cases, and store them in the bundle."""
    trained, words = session.trained, _fitted_words(session)
    mean, axes = _components(session, words)
    models = models_folder(trained.folder)
    with WriteLock(models):
        tensors = {"mean": mean, "axes": axes.half(), **words.state_dict(prefix="words.")}  # a file of half the size
        description = {"autoencoder_sha256": trained.sha256, "size": words.shrink.cells}
        write_model(models / WIDE, "wide", tensors, description)
    logger.info("models/%s: %d components of the training cases' features", WIDE, len(axes))


def _components(session: Session, words: PatchWords) -> tuple[Tensor, Tensor]:
    """The mean [F] and the components [K, F] of the features of at most ``_MOST_CASES`` training cases."""
    trained = session.trained
    encoder = _FeatureEncoder(trained.network, words).eval()

    def encode(images: Tensor) -> Tensor:
        return trained.inferer.encode(images, encoder)

    least = WIDE_CHANNELS + 1
    batches = training_images(session, least, encode, text="wide features", most_cases=_MOST_CASES)
    first = next(batches)
    widths = [first.shape[1] - words.out_features, words.out_features]
    parts = np.split(first, widths[:1], axis=1)
    variances = np.array([part.var(axis=0).sum() for part in parts])
    scales = np.sqrt(np.divide(_VARIANCES, variances, out=np.zeros(len(parts)), where=variances > 0))
    scale = np.repeat(scales, widths).astype(np.float32)
    components = PixelComponents.fit((batch * scale for batch in chain([first], batches)), WIDE_CHANNELS)
    mean = np.divide(components.mean, scale, out=first.mean(axis=0), where=scale > 0)
    return torch.from_numpy(mean).float(), torch.from_numpy(components.axes * scale).float()
