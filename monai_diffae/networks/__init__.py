"""Networks: encoder, conditional denoiser, both as one module; first stage; the latent DDIM's MLP."""

from __future__ import annotations

from monai_diffae.networks.anchored_encoder import AnchoredEncoder, PatchWords, PooledVoxels
from monai_diffae.networks.arguments import anisotropic_strides
from monai_diffae.networks.autoencoder import PRESETS, DiffusionAutoencoder, build_autoencoder, preset
from monai_diffae.networks.denoising_unet import DenoisingUNet
from monai_diffae.networks.encoder_adapter import EncoderAdapter, PlanarAdapter
from monai_diffae.networks.first_stage import FirstStage
from monai_diffae.networks.latent_mlp import LatentMLP
from monai_diffae.networks.monai_unet import CrossAttentionUNet
from monai_diffae.networks.semantic_encoder import SemanticEncoder

__all__ = [
    "PRESETS",
    "AnchoredEncoder",
    "CrossAttentionUNet",
    "DenoisingUNet",
    "DiffusionAutoencoder",
    "EncoderAdapter",
    "FirstStage",
    "LatentMLP",
    "PatchWords",
    "PlanarAdapter",
    "PooledVoxels",
    "SemanticEncoder",
    "anisotropic_strides",
    "build_autoencoder",
    "preset",
]
