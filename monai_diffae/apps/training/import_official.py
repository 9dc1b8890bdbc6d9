"""The command ``import-official``: make a bundle from weights of the official Diff-AE code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from monai_diffae.apps.command import command
from monai_diffae.apps.results import FolderResult


@command
def import_official(
    checkpoint: Path,
    out: Path,
    *,
    bundle: str = "diffae_2d",
    image_size: Annotated[int, Ge(1)] | None = None,
    latent_statistics: Path | None = None,
    encoder_num_res_blocks: Annotated[int, Ge(1)] | None = None,
    num_heads: Annotated[int, Ge(1)] | None = None,
    hyper_parameters: Path | None = None,
) -> FolderResult:
    """Make a trained bundle from a checkpoint of the official Diff-AE code (phizaz/diffae).

    The folder gets a shipped bundle's configurations, ``models/model.safetensors`` and ``models/provenance.json``, and
    if the checkpoint has a latent DDIM also ``models/latent_model.safetensors``. Settings that leave no trace in the
    weights (attention heads, beta schedules, the latent DDIM's scales) are read from the checkpoint's
    ``hyper_parameters``. Options give those that it lacks; all others are as in the released models. The command logs
    what it used. Images are scaled as in the official code: 0..255 to [-1, 1]. They are decoded and
    inverted as in the shipped bundle; ``reconstruct`` with solver and inversion ``ddim`` and spacing ``leading`` does
    what the official code does.

    Args:
        checkpoint: A ``.ckpt`` of the official training, or its weights as ``.safetensors``.
        out: New folder for the bundle.
        bundle: Name of the shipped bundle whose configurations are used.
        image_size: Pixels per side; by default that of the checkpoint, or else the size at which the network's
            attention sees 16 x 16, as in all official configurations.
        latent_statistics: The official ``latent.pkl``, if the checkpoint lacks the statistics of z_sem.
        encoder_num_res_blocks: Residual blocks per level of the encoder; required if several numbers fit the weights.
        num_heads: Number of attention heads, if the checkpoint lacks it.
        hyper_parameters: JSON file of the official ``TrainConfig`` (``conf.save(file)`` in the official code), if the
            checkpoint lacks its own.

    Returns:
        The folder of the bundle.

    Raises:
        ConfigError: the checkpoint does not exist or is of another network, its image size is unknown or cannot be
            used, or ``out`` is not empty.
        UnsafeInputError: a file is damaged, or reading it could run code.
        MachineError: the folder cannot be written; nothing of it remains.

    Example:
        >>> import_official("last.ckpt", "my_model")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: last.ckpt: there is no such file
    """
    from monai_diffae.apps.training.official_bundle import OfficialModel, make_official_bundle

    given = {"net_enc_num_res_blocks": encoder_num_res_blocks, "net_beatgans_attn_head": num_heads}
    model = OfficialModel(image_size, latent_statistics, hyper_parameters, given)
    make_official_bundle(checkpoint, out, bundle, model)
    return FolderResult(out)
