"""Inference with trained networks: encoding, inversion, decoding, and sampling of z_sem. Tensors only."""

from monai_diffae.lazy import attach

MODULES = {
    **dict.fromkeys(("DiffusionAutoencoderInferer", "ReconstructionMode"), "autoencoding"),
    "LatentInferer": "generation",
    **dict.fromkeys((
        "FirstStageInferer", "FirstStageReconstructor", "Reconstructor", "encode_exactly", "estimate_from_noised",
        "images_at_once",
    ), "reconstruction"),
}  # fmt: skip

__all__ = [*MODULES]

__getattr__ = attach(__name__, MODULES)
