"""Check that all weights of a bundle that is sent fit the configurations that are sent with them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from monai_diffae.bundle import layout
from monai_diffae.bundle.checksums import checksum
from monai_diffae.bundle.fast_decoders import read_fast_decoder
from monai_diffae.bundle.first_stages import load_first_stage
from monai_diffae.bundle.latent_ddim import load_latent
from monai_diffae.bundle.model_check import check_model
from monai_diffae.bundle.sent_weights import check_only_weights, check_same_weights


def check_sent_model(folder: Path) -> None:
    """Check the weights of a copy: they hold nothing else, and fit the networks that the copy describes."""
    models = folder / layout.MODELS
    network = check_model(folder, layout.model_config_file(folder), models / layout.MODEL)
    networks: dict[str, nn.Module] = {"": network}
    if (models / f"{layout.FIRST_STAGE_PREFIX}{layout.MODEL}").is_file():
        networks[layout.FIRST_STAGE_PREFIX] = load_first_stage(models, prefix=layout.FIRST_STAGE_PREFIX)
    if (models / layout.LATENT_MODEL).is_file():
        networks[layout.LATENT_PREFIX] = load_latent(folder, "cpu").network
    if (models / layout.FAST_MODEL).is_file():
        networks[layout.FAST_PREFIX] = read_fast_decoder(models, network, checksum(folder), "cpu").unet
    for prefix, built in networks.items():
        weights = check_only_weights(models / f"{prefix}{layout.MODEL}", built)
        if (models / f"{prefix}{layout.SAFE_MODEL}").is_file():
            check_same_weights(models / f"{prefix}{layout.SAFE_MODEL}", weights)
