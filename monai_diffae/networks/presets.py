"""Networks from one flat list of arguments, and by name."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from torch import nn

from monai_diffae.errors import ConfigError, quoted
from monai_diffae.networks.autoencoder import DiffusionAutoencoder
from monai_diffae.networks.denoising_unet import DenoisingUNet
from monai_diffae.networks.semantic_encoder import SemanticEncoder

# paper_*: the official configurations, with attention where a square image of that size is 16 x 16
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "base_channels": 32,
        "channel_mult": (1, 2, 2),
        "num_res_blocks": 1,
        "z_channels": 128,
        "time_embed_channels": 128,
    },
    "paper_64": {"base_channels": 64, "channel_mult": (1, 2, 4, 8), "attention_levels": (2,), "dropout": 0.1},
    "paper_128": {"base_channels": 128, "channel_mult": (1, 1, 2, 3, 4), "attention_levels": (3,), "dropout": 0.1},
    "paper_256": {"base_channels": 128, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_levels": (4,), "dropout": 0.1},
}
_FOR_ENCODER = "encoder_"


def preset(name: str, spatial_dims: int = 2, in_channels: int = 1, **overrides: Any) -> DiffusionAutoencoder:
    """A network by the name of its configuration; in a bundle, ``"_target_": "monai_diffae.networks.preset"``.

    Args:
        name: ``tiny`` (1.7 M parameters, for 32 to 64 pixels on a CPU), or ``paper_64``, ``paper_128``,
            ``paper_256``: what Diff-AE's official code trains at that many pixels (91, 129 and 169 M parameters).
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        **overrides: any other argument of :func:`build_autoencoder`.

    Raises:
        ConfigError: a name or an argument that does not exist.

    Example:
        >>> preset("tiny", z_channels=64).z_channels
        64
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {quoted(name)}: choose from {', '.join(PRESETS)}")
    try:
        return build_autoencoder(spatial_dims, in_channels, **{**PRESETS[name], **overrides})
    except ConfigError as error:
        raise ConfigError(f"preset {quoted(name)}: {error}") from error


def build_autoencoder(
    spatial_dims: int,
    in_channels: int = 1,
    encoder: nn.Module | None = None,
    encoder_frozen: bool = False,
    use_checkpoint: bool = False,
    **arguments: Any,
) -> DiffusionAutoencoder:
    """Both networks of a diffusion autoencoder from one flat list of arguments.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        encoder: a network of your own in place of :class:`SemanticEncoder`.
        encoder_frozen: see :class:`DiffusionAutoencoder`.
        use_checkpoint: see :class:`DiffusionAutoencoder`.
        **arguments: arguments of :class:`DenoisingUNet` and :class:`SemanticEncoder`. One that both have is given to
            both; with ``encoder_`` in front, to the encoder only. By default, the encoder has one level more than the
            UNet, with the same multiplier as the last.

    Raises:
        ConfigError: an argument that does not exist, or settings that give no network.

    Example:
        >>> network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=16, encoder_num_heads=2)
        >>> network.encoder.config["channel_mult"], network.encoder.config["num_heads"]
        ([1, 2, 2], 2)
    """
    both = {"spatial_dims": spatial_dims, "in_channels": in_channels, **arguments}
    for_encoder = {
        name.removeprefix(_FOR_ENCODER): both.pop(name) for name in arguments if name.startswith(_FOR_ENCODER)
    }
    unet_names, encoder_names = _parameters(DenoisingUNet), _parameters(SemanticEncoder)
    _refuse_unknown(both, unet_names | encoder_names)
    _refuse_unknown(for_encoder, encoder_names, _FOR_ENCODER)
    # The UNet first: the order decides which random weights a seed gives.
    unet = DenoisingUNet(**{name: value for name, value in both.items() if name in unet_names})
    if encoder is None:
        *_, last = levels = unet.config["channel_mult"]
        settings = {name: value for name, value in both.items() if name in encoder_names}
        settings["channel_mult"] = [*levels, last]
        settings |= {name: value for name, value in for_encoder.items() if value is not None}
        encoder = SemanticEncoder(**settings)
    elif for_encoder:
        name = next(iter(for_encoder))
        raise ConfigError(f"{_FOR_ENCODER}{name} has no effect on an encoder of your own; omit it")
    return DiffusionAutoencoder(encoder, unet, encoder_frozen, use_checkpoint)


def _parameters(network: type[nn.Module]) -> set[str]:
    return set(inspect.signature(network).parameters)


def _refuse_unknown(arguments: dict[str, Any], known: set[str], prefix: str = "") -> None:
    for name in arguments.keys() - known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {quoted(prefix + nearest[0])}?" if nearest else ""
        raise ConfigError(f"there is no argument {quoted(prefix + name)}{hint}")
