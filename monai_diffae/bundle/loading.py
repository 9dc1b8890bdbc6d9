"""A trained bundle: its network, inferer and preprocessing, loaded from its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from monai.transforms import Transform
from numpy.typing import NDArray
from torch import nn

from monai_diffae.bundle import layout
from monai_diffae.bundle.checksums import checksum, config_checksum
from monai_diffae.bundle.config import check_arguments, model_config
from monai_diffae.bundle.config_reading import read_config
from monai_diffae.bundle.config_values import check_device, check_rules
from monai_diffae.bundle.consistent_reading import read_consistently
from monai_diffae.bundle.fast_decoders import read_fast_decoder
from monai_diffae.bundle.last_metrics import last_usage
from monai_diffae.bundle.opened_case import CaseImages, OpenedCase, open_case
from monai_diffae.bundle.preprocessing_config import preprocessing_checksum, preprocessing_config
from monai_diffae.bundle.trust import check_code
from monai_diffae.bundle.weights import read_weights
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError, find_diffae_error, one_line, quoted
from monai_diffae.inferers import DiffusionAutoencoderInferer

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

T = TypeVar("T")


@dataclass
class TrainedBundle:
    """A trained model with everything needed to use it.

    Attributes:
        folder: the bundle's folder.
        network: in evaluation mode, on ``device``, with the averaged weights.
        inferer: encodes, inverts, decodes.
        preprocessing: a MONAI transform from a case's item to ``[C, *S]`` in ``model_range``.
        config: the values of the model's config keys, such as ``image_size``.
        sha256: SHA-256 of the loaded weights.
        config_sha256: SHA-256 of the configuration that describes the model.
        device: where the network is.
        z_sem_usage: how much the decoder uses z_sem, from the last validation of the training; None: not measured.
        fast_sha256: SHA-256 of the fast decoder's weights; None: the bundle was loaded with the exact decoder.
    """

    folder: Path
    network: nn.Module
    inferer: DiffusionAutoencoderInferer
    preprocessing: Callable[[Any], Any]
    config: dict[str, Any] = field(repr=False)
    sha256: str
    config_sha256: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    z_sem_usage: float | None = None
    fast_sha256: str | None = None

    def is_current(self) -> bool:
        """Whether the bundle's folder still has this model, or another one since it was loaded.

        Weights and configuration are compared by their checksums. The weights are only read if their file changed.

        Raises:
            ConfigError: the folder has no trained model any more.
        """
        current = read_consistently(self.folder, lambda _: (checksum(self.folder), config_checksum(self.folder)))
        return current == (self.sha256, self.config_sha256)

    @property
    def made_from(self) -> dict[str, Any]:
        """What every result of this bundle depends on: the beginning of its record."""
        fast = {} if self.fast_sha256 is None else {"fast_decoder": self.fast_sha256}
        return {"model": self.sha256, "config": self.config_sha256, **fast}

    @property
    def preprocessing_sha256(self) -> str:
        """SHA-256 of the preprocessing, with overrides: the weights alone do not say which z_sem a scan gets."""
        return preprocessing_checksum(preprocessing_config(self.config))

    @property
    def model_range(self) -> tuple[float, float]:
        """The intensities of the model's images: lowest and highest."""
        low, high = self.config["model_range"]
        return float(low), float(high)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape (C, *S) of the model's images."""
        return (int(self.config["in_channels"]), *map(int, self.config["image_size"]))

    @property
    def grid_affine(self) -> NDArray[np.float64] | None:
        """The affine of volumes in the model's grid; None for 2D models."""
        return grid_affine(self.config)

    @property
    def x_T_shape(self) -> tuple[int, ...]:
        """Shape (C, *S) of an image's stochastic code: that of the image, or of its latents."""
        return self.inferer.x_T_shape(self.image_shape)

    @property
    def z_channels(self) -> int:
        """The number of values in z_sem."""
        return int(self.network.z_channels)  # type: ignore[arg-type]

    @property
    def encoder_key(self) -> str:
        """The key of the image that the encoder sees; the decoder reconstructs ``"image"``."""
        return str(self.config.get("encoder_key", "image"))

    @property
    def image_keys(self) -> list[str]:
        """The columns of the cohort's table that hold the paths of a case's images."""
        return list(self.config["image_keys"])

    def open(self, image: CaseImages, *, slice: int | None = None, id: str | None = None) -> OpenedCase:
        """Open one case: read and preprocess it. Codes and reconstructions are computed when they are asked for.

        Args:
            image: a path; a list of paths, the channels of one image; an array ``[C, *S]``; a MetaTensor, which brings
                its affine; or a mapping from image keys to one of these, for bundles with several images. A 2D image
                has rows first. A volume in a 2D bundle is opened as all slices that the bundle's ``slice_range`` and
                ``slice_step`` select.
            slice: for a volume in a 2D bundle: this slice only, counted from 0 at the inferior (axial), posterior
                (coronal) or left (sagittal) end, not along the file.
            id: the case's id; None: the file's name without its suffix, or ``""``.

        Raises:
            ScanError: the scan cannot be used.
            ConfigError: the image keys or ``slice`` do not fit the bundle, or its preprocessing cannot be inverted.

        Example:
            >>> trained = load_bundle("my_model")  # doctest: +SKIP
            >>> case = trained.open("scan.nii.gz")  # doctest: +SKIP
            >>> case.write("reconstructed.nii.gz", case.back(case.reconstruct("z_sem")))  # doctest: +SKIP
        """
        return open_case(self, image, slice=slice, id=id)


def grid_affine(config: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Return the affine of a volume in the grid of a model with this configuration, with the first voxel at 0 mm.

    Returns:
        ``[4, 4]`` from ``spacing_mm``, or None for a 2D model.

    Example:
        >>> grid_affine({"spatial_dims": 3, "spacing_mm": [1.5, 1.5, 3.0]}).diagonal().tolist()
        [1.5, 1.5, 3.0, 1.0]
    """
    if "spacing_mm" not in config:
        return None
    return np.diag([*map(float, config["spacing_mm"]), 1.0])


def load_bundle(
    bundle: str | os.PathLike[str],
    device: str | torch.device | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> TrainedBundle:
    """Load a trained bundle.

    The model is described by ``models/config.json``, which training writes beside the weights, or by
    ``configs/train.json`` if that file does not exist.

    Args:
        bundle: the bundle's folder.
        device: where to compute; None: the GPU if there is one.
        overrides: values for keys of the configuration, such as ``{"inferer#steps": 20}``.

    Raises:
        ConfigError: the bundle is not trained, its weights are of another network, an override names an unknown key,
            or a component refuses a value.
        UnsafeInputError: the configuration has code of its own, and is not trusted (:func:`trusting`).
        MachineError: the device does not exist.

    Example:
        >>> load_bundle("my_model")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_model: there is no models/model.pt; train the bundle first, or ...
    """
    overrides = dict(overrides or {})
    if "device" in overrides:
        raise ConfigError("device: is not a key of the model's configuration; use the argument device")
    if device is not None:
        check_device(device)
    root = Path(bundle)
    return read_consistently(root, lambda models: _loaded(root, models, device, overrides))


def _loaded(root: Path, models: Path, device: str | torch.device | None, overrides: Mapping[str, Any]) -> TrainedBundle:
    """Load a bundle whose model is in the folder ``models``; :func:`load_bundle` lists the errors."""
    layout.check_trained(root, models)
    parser = described_model(root, overrides)
    values = dict(parser.get())
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    parser.update({"bundle_root": str(root), "device": device})  # a first stage is in the bundle, too
    network = build(parser, "network_def", nn.Module)
    network.load_state_dict(read_weights(models / layout.MODEL, network))
    network.to(device).eval().requires_grad_(False)
    checksums = checksum(root), config_checksum(root)
    inferer, preprocessing = build_companions(parser, device)
    fast_sha256 = None
    if inferer.decoder == "fast":
        inferer = inferer.replace(fast_decoder=read_fast_decoder(models, network, checksums[0], device))
        fast_sha256 = file_checksum(models / layout.FAST_MODEL)
    return TrainedBundle(
        root, network, inferer, preprocessing, values, *checksums, device, last_usage(root), fast_sha256
    )


def build_companions(parser: ConfigParser, device: torch.device) -> tuple[DiffusionAutoencoderInferer, Transform]:
    """The inferer and the preprocessing that a model's configuration describes, for a network on a device."""
    inferer = build(parser, "inferer", DiffusionAutoencoderInferer)
    inferer.schedule.to(device)
    preprocessing: Transform = build(parser, "preprocessing", Transform)  # type: ignore[type-abstract]
    return inferer, preprocessing


def described_model(root: Path, overrides: Mapping[str, Any]) -> ConfigParser:
    """The configuration that describes a bundle's model, trained or not, with overrides, checked."""
    config = layout.model_config_file(root)
    parser = read_config(config)
    lacks = [key for key in ("network_def", "inferer", "preprocessing", "model_range") if key not in parser]
    if lacks:
        raise ConfigError(
            f"{root.name}: {config.name} lacks {quoted(lacks[0])}; copy it again, or choose a diffusion autoencoder"
        )
    check_code(overrides, "overrides", places=False)
    unknown = [key for key in overrides if "#" not in key and key not in parser]  # components may get new arguments
    if unknown:
        raise ConfigError(no_such_key(unknown[0], "the model's configuration", "models/config.json"))
    set_values(parser, overrides, "the model's configuration", "models/config.json")
    check_rules(dict(parser.get()))
    return parser


def set_values(parser: ConfigParser, values: Mapping[str, Any], what: str, file: str) -> None:
    """Set values of a configuration by their ids, such as ``{"inferer#steps": 20}``.

    ``what`` and ``file`` name the configuration and the file with its keys in errors.
    """
    for key, value in values.items():
        if not key:  # MONAI would replace the whole configuration
            raise ConfigError(no_such_key("''", what, file))
        try:
            parser[key] = value
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ConfigError(no_such_key(key, what, file)) from error


def no_such_key(key: str, what: str, file: str) -> str:
    """The message about an id that a configuration does not have."""
    return f"{key}: {what} has no such key; see {file} for those it has"


def build(parser: ConfigParser, key: str, kind: type[T]) -> T:
    """Build the component of a configuration with this id, and check its type."""
    try:
        component = parser.get_parsed_content(key)
    except Exception as error:
        cause = find_diffae_error(error)
        if cause is not None:
            raise type(cause)(str(cause)) from error
        check_arguments(model_config(parser.get(), roots=(key,)))
        raise ConfigError(f"{key}: cannot be built from the configuration: {one_line(error)}") from error
    if not isinstance(component, kind):
        raise ConfigError(f"{key}: must be a {kind.__name__}, but the configuration gives {type(component).__name__}")
    return component
