"""Check that the weights of a bundle are those of the network that its configuration describes."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from monai_diffae.bundle.config_reading import read_config
from monai_diffae.bundle.loading import build
from monai_diffae.bundle.weights import read_weights


def check_model(bundle: Path, config: Path, weights: Path) -> nn.Module:
    """Build the network of a configuration on the CPU, check that the weights fit it, and return it without them."""
    parser = read_config(config)
    parser.update({"bundle_root": str(bundle), "device": "cpu"})
    network = build(parser, "network_def", nn.Module)
    read_weights(weights, network)
    return network
