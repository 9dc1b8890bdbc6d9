"""A trained bundle: its network, inferer and preprocessing, loaded from its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from monai.transforms import Transform
from numpy.typing import NDArray
from torch import nn

from monai_diffae.bundle.checksums import checksum, config_checksum
from monai_diffae.bundle.config import check_arguments, model_config
from monai_diffae.bundle.config_values import check_device
from monai_diffae.bundle.decoding import inferer_settings
from monai_diffae.errors import ConfigError, ScanError, find_diffae_error, one_line
from monai_diffae.inferers import DiffusionAutoencoderInferer

if TYPE_CHECKING:
    from monai.bundle import ConfigParser


def bundle_summary(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What a trained bundle is, for people and as JSON.

    Raises:
        ConfigError: it is not trained.
    """
    digest = checksum(directory)
    trained = load_bundle(directory, "cpu")
    settings = inferer_settings(trained.inferer)
    keys = ("spatial_dims", "in_channels", "image_size", "image_keys", "intensity", "model_range")
    return {
        **{key: trained.config[key] for key in keys if key in trained.config},
        "parameters": sum(p.numel() for p in trained.network.parameters()),
        "decoding_steps": settings["steps"],
        "inversion_steps": settings["invert_steps"],
        "solver": settings["solver"],
        "sha256": digest,
    }


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
        device: where the network is.
    """

    folder: Path
    network: nn.Module
    inferer: DiffusionAutoencoderInferer
    preprocessing: Callable[[Any], Any]
    config: dict[str, Any] = field(repr=False)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights."""
        return checksum(self.folder)

    @property
    def config_sha256(self) -> str:
        """SHA-256 of the configuration that describes the model."""
        return config_checksum(self.folder)

    @property
    def made_from(self) -> dict[str, Any]:
        """What every result of this bundle depends on: the beginning of its record."""
        return {"model": self.sha256, "config": self.config_sha256}

    @property
    def model_range(self) -> tuple[float, float]:
        """The intensities that the model works in."""
        low, high = self.config["model_range"]
        return float(low), float(high)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, *S) of an image that the model takes and makes."""
        return (int(self.config["in_channels"]), *map(int, self.config["image_size"]))

    @property
    def grid_affine(self) -> NDArray[np.float64] | None:
        """The affine of volumes in the model's grid; None for 2D models."""
        return grid_affine(self.config)

    @property
    def x_T_shape(self) -> tuple[int, ...]:
        """(C, *S) of an image's stochastic code: the image's, or that of its latents."""
        return self.inferer.x_T_shape(self.image_shape)

    @property
    def z_channels(self) -> int:
        """The size of z_sem."""
        return int(self.network.z_channels)  # type: ignore[arg-type]

    @property
    def image_keys(self) -> list[str]:
        """The images of a case, as the cohort's table names them."""
        return list(self.config["image_keys"])


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
        overrides: values for keys of the configuration, such as ``{"inferer#num_steps": 20}``.

    Raises:
        ConfigError: the bundle is not trained, its weights are of another network, an override names an unknown key,
            or a component refuses a value.
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
    weights = root / "models" / "model.pt"
    if not weights.is_file():
        raise ConfigError(f"{root.name}: there is no models/model.pt; train the bundle first, or name a trained one")
    ran = root / "models" / "config.json"
    config = ran if ran.is_file() else root / "configs" / "train.json"
    parser = read_model_config(config)
    lacks = [key for key in ("network_def", "inferer", "preprocessing", "model_range") if key not in parser]
    if lacks:
        raise ConfigError(
            f"{root.name}: {config.name} lacks {lacks[0]!r}; copy it again, or name a diffusion autoencoder"
        )
    unknown = [key for key in overrides if "#" not in key and key not in parser]  # unlike a component's arguments
    if unknown:
        raise ConfigError(no_such_key(unknown[0], "the model's config", "models/config.json"))
    set_values(parser, overrides, "the model's config", "models/config.json")
    values = dict(parser.get())
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    parser.update({"bundle_root": str(root), "device": device})  # a first stage lies in the bundle, too
    network = build(parser, "network_def", nn.Module)
    network.load_state_dict(read_weights(weights, network))
    network.to(device).eval().requires_grad_(False)
    inferer = build(parser, "inferer", DiffusionAutoencoderInferer)
    inferer.schedule.to(device)
    preprocessing = build(parser, "preprocessing", Transform)  # type: ignore[type-abstract]
    return TrainedBundle(root, network, inferer, preprocessing, values, device)


def read_model_config(path: Path) -> ConfigParser:
    """A bundle's file that describes a model.

    Raises:
        ConfigError: it is not there, or cannot be read.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    try:
        parser.read_config(str(path))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path.parents[1].name}: {path.name} cannot be read; copy the bundle again") from error
    return parser


def set_values(parser: ConfigParser, values: Mapping[str, Any], what: str, file: str) -> None:
    """Give a config these values, by their ids, such as ``{"inferer#num_steps": 20}``.

    Args:
        parser: of the config.
        values: ids and values.
        what: what the config is called,
        file: and where its keys can be seen; for the message.

    Raises:
        ConfigError: an id leads to nothing.
    """
    for key, value in values.items():
        try:
            parser[key] = value
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ConfigError(no_such_key(key, what, file)) from error


def no_such_key(key: str, what: str, file: str) -> str:
    """What to say of an id that a config does not have."""
    return f"{key}: {what} has no such key; see {file} for those it has"


def build(parser: ConfigParser, key: str, kind: type[T]) -> T:
    """A component of a config. What its constructor raises, which MONAI buries, is raised as an error of ours."""
    try:
        component = parser.get_parsed_content(key)
    except Exception as error:
        known = find_diffae_error(error)
        if known is not None:
            raise type(known)(str(known)) from error
        check_arguments(model_config(parser.get(), roots=(key,)))
        raise ConfigError(f"{key}: cannot be built from the config: {one_line(error)}") from error
    if not isinstance(component, kind):
        raise ConfigError(f"{key}: the config gives a {type(component).__name__}, no {kind.__name__}")
    return component


def read_weights(path: Path, network: nn.Module, may_be_unknown: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """A state dict for a network, checked; the tensors that may be unknown can hold NaN.

    Raises:
        ScanError: a damaged file, or weights that are not finite.
        ConfigError: no state dict, or one of another network.
    """
    try:
        state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ScanError(f"{path.name}: cannot be read as weights; copy it again or train anew") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConfigError(
            f"{path.name}: holds no state dict of weights; name a bundle that was trained with this package"
        )
    known = [value for name, value in state.items() if value.is_floating_point() and name not in may_be_unknown]
    if not all(torch.isfinite(value).all() for value in known):
        raise ScanError(f"{path.name}: holds weights that are not finite; train anew, or copy it again")
    wanted = network.state_dict()
    wrong = [
        k
        for k in wanted.keys() | state.keys()
        if k not in state or k not in wanted or state[k].shape != wanted[k].shape
    ]
    if wrong:
        raise ConfigError(
            f"{path.name}: {len(wrong)} of {len(wanted)} weights do not fit the config's network, the first is "
            f"{min(wrong)!r}; use the config that the model was trained with, beside it"
        )
    return state
