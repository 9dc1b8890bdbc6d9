"""A bundle without weights: its preprocessing, and a network of random weights, for embeddings to compare with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_diffae.bundle.config import check_image_size, model_config
from monai_diffae.bundle.config_values import check_device, check_dimensions
from monai_diffae.bundle.folders import shipped_bundle
from monai_diffae.bundle.loading import TrainedBundle, build, build_companions, described_model
from monai_diffae.bundle.parser import Parser


def load_untrained(
    bundle: str | os.PathLike[str],
    device: str | torch.device | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> TrainedBundle:
    """Load a bundle with the preprocessing that its training has or would have, and random weights.

    ``bundle`` is a folder, trained or not, or the name of a shipped bundle. The ``sha256`` of the result stands for the
    configuration and the seed.
    """
    if device is not None:
        check_device(device)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    root = Path(bundle) if Path(bundle).is_dir() else shipped_bundle(str(bundle))
    parser = described_model(root, overrides or {})
    values = model_config(dict(parser.get()))
    check_dimensions(values)
    config_sha256 = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
    parser.update({"bundle_root": str(root), "device": device})
    network = untrained_network(dict(parser.get()), seed).to(device)
    check_image_size(network, values["image_size"])
    companions = build_companions(parser, device)
    sha256 = hashlib.sha256(f"untrained {seed} {config_sha256}".encode()).hexdigest()
    return TrainedBundle(root, network, *companions, values, sha256, config_sha256, device)


def untrained_network(config: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The network that a configuration describes, with random weights, in evaluation mode on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(Parser(deepcopy(dict(config))), "network_def", nn.Module)
    return network.eval().requires_grad_(False)
