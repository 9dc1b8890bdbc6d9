"""Inference with trained networks: encoding, inversion, decoding, and sampling of z_sem. Tensors only."""

from monai_diffae.inferers.autoencoding import DiffusionAutoencoderInferer, ReconstructionMode
from monai_diffae.inferers.exact_encoding import encode_exactly
from monai_diffae.inferers.first_stage import FirstStageInferer, FirstStageReconstructor
from monai_diffae.inferers.generation import LatentInferer
from monai_diffae.inferers.noised_images import estimate_from_noised
from monai_diffae.inferers.reconstructor import Reconstructor

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
