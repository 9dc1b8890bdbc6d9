"""Inference with trained networks: encoding, inversion, decoding, and sampling of z_sem. Tensors only."""

from monai_diffae.inferers.autoencoding import DiffusionAutoencoderInferer, ReconstructionMode
from monai_diffae.inferers.generation import LatentInferer
from monai_diffae.inferers.reconstruction import (
    FirstStageInferer,
    FirstStageReconstructor,
    Reconstructor,
    encode_exactly,
    estimate_from_noised,
)

__all__ = [
    "DiffusionAutoencoderInferer",
    "FirstStageInferer",
    "FirstStageReconstructor",
    "LatentInferer",
    "ReconstructionMode",
    "Reconstructor",
    "encode_exactly",
    "estimate_from_noised",
]
