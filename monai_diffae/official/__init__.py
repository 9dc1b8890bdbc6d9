"""Checkpoints of the official Diff-AE code (phizaz/diffae): their files, layout and weights."""

from monai_diffae.official.latent import load_official_latent
from monai_diffae.official.weights import load_official

__all__ = ["load_official", "load_official_latent"]
