"""Encoding, inversion and decoding with a trained network, and sampling of z_sem. Tensors only."""

from monai_diffae.inferers.autoencoding import DiffusionAutoencoderInferer, Inversion, ReconstructionMode
from monai_diffae.inferers.first_stage import FirstStageInferer, FirstStageReconstructor
from monai_diffae.inferers.generation import LatentInferer

__all__ = [
    "DiffusionAutoencoderInferer",
    "FirstStageInferer",
    "FirstStageReconstructor",
    "Inversion",
    "LatentInferer",
    "ReconstructionMode",
]
