"""Networks by name."""

from __future__ import annotations

from typing import Any

from monai_diffae.errors import ConfigError
from monai_diffae.networks.autoencoder import DiffusionAutoencoder

# paper_*: the official configurations, attention where a square image of that size is 16 x 16
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


def preset(name: str, spatial_dims: int = 2, in_channels: int = 1, **overrides: Any) -> DiffusionAutoencoder:
    """A network by the name of its configuration; in a bundle, ``"_target_": "monai_diffae.networks.preset"``.

    Args:
        name: ``tiny`` (1.7 M parameters, for 32 to 64 pixels on a CPU), or ``paper_64``, ``paper_128``,
            ``paper_256``: what Diff-AE's official code trains at that many pixels (91, 129 and 169 M parameters).
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        **overrides: any other argument of :class:`DiffusionAutoencoder`.

    Raises:
        ConfigError: a name or an argument that does not exist.

    Example:
        >>> preset("tiny", z_channels=64).config["z_channels"]
        64
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}: choose from {', '.join(PRESETS)}")
    try:
        return DiffusionAutoencoder(spatial_dims, in_channels, **{**PRESETS[name], **overrides})
    except TypeError as error:
        raise ConfigError(f"preset {name!r}: {error}") from error
