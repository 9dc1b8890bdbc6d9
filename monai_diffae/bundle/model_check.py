"""Check that the weights of a bundle are those of the network that its configuration describes."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from monai_diffae.bundle.config_reading import read_config
from monai_diffae.bundle.loading import build
from monai_diffae.bundle.weights import read_weights


def check_model(bundle: Path, config: Path, weights: Path) -> nn.Module:
    """Build the network of a configuration on the CPU, and check that the weights fit it.

    Args:
        bundle: the bundle's folder, which may hold a first stage.
        config: the configuration.
        weights: the file of weights.

    Returns:
        The network, without the weights.

    Raises:
        ConfigError: the network cannot be built, or the weights are those of another network.
        ScanError: the weights are damaged, or not finite.
        UnsafeInputError: the configuration has code of its own, and is not trusted.
    """
    parser = read_config(config)
    parser.update({"bundle_root": str(bundle), "device": "cpu"})
    network = build(parser, "network_def", nn.Module)
    read_weights(weights, network)
    return network
