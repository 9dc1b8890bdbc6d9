"""Encoding, inversion and decoding with a trained network. Tensors only."""

from monai_diffae.inferers.autoencoding import DiffusionAutoencoderInferer, Inversion, ReconstructionMode

__all__ = ["DiffusionAutoencoderInferer", "Inversion", "ReconstructionMode"]
