"""The networks of a diffusion autoencoder: semantic encoder, conditional denoiser, and both as one module."""

from __future__ import annotations

from monai_diffae.networks.autoencoder import DiffusionAutoencoder
from monai_diffae.networks.denoising_unet import DenoisingUNet
from monai_diffae.networks.official_weights import load_official
from monai_diffae.networks.presets import PRESETS, preset
from monai_diffae.networks.semantic_encoder import SemanticEncoder

__all__ = ["PRESETS", "DenoisingUNet", "DiffusionAutoencoder", "SemanticEncoder", "load_official", "preset"]
