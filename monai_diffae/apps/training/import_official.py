"""The command ``import-official``: make a bundle from weights of the official Diff-AE code."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from monai_diffae import __version__, networks, official
from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result
from monai_diffae.bundle import layout
from monai_diffae.bundle.code import read_values
from monai_diffae.bundle.config import check_image_size
from monai_diffae.bundle.description import describe, versions
from monai_diffae.bundle.folders import check_new_folder, init_bundle, shipped_bundle
from monai_diffae.bundle.model_file import checksum, write_model
from monai_diffae.data.atomic import write_json
from monai_diffae.data.cases import safe_file_name
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import ConfigError
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import torch

    from monai_diffae import latents
    from monai_diffae.bundle import parser as parsing
    from monai_diffae.latents import targets

logger = logging.getLogger(__name__)

# The official code's 8-bit images in [-1, 1], and what its diffusions have in common.
_OFFICIAL: dict[str, Any] = {"intensity": "window", "window_hu": [0, 255], "model_range": [-1.0, 1.0]}
_DIFFUSION = {
    "_target_": "monai_diffae.diffusion.DiffusionSchedule",
    "timestep_sampling": "uniform",
    "loss_weighting": "none",
}
_ATTENTION_SIZE = 16  # pixels per side where the official configurations have attention


@command
def import_official(
    checkpoint: Path,
    out: Path,
    *,
    image_size: Annotated[int, Ge(1)] | None = None,
    latent_statistics: Path | None = None,
    encoder_num_res_blocks: Annotated[int, Ge(1)] | None = None,
    num_heads: Annotated[int, Ge(1)] | None = None,
    hyper_parameters: Path | None = None,
    classifier: Path | None = None,
    classes: Sequence[str] = (),
) -> Result:
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
        image_size: Pixels per side; by default that of the checkpoint, or else the size at which the network's
            attention sees 16 x 16, as in all official configurations.
        latent_statistics: The official ``latent.pkl``, if the checkpoint lacks the statistics of z_sem.
        encoder_num_res_blocks: Residual blocks per level of the encoder; required if several numbers fit the weights.
        num_heads: Number of attention heads, if the checkpoint lacks it.
        hyper_parameters: JSON file of the official ``TrainConfig`` (``conf.save(file)`` in the official code), if the
            checkpoint lacks its own.
        classifier: Checkpoint of the official linear classifier of normalised z_sem; each of its classes becomes a
            direction in ``directions/``, along its weight, for ``edit`` and ``predict``.
        classes: Names of these classes, in the order of the training; by default ``class_0`` and so on.

    Returns:
        The folder of the bundle.

    Raises:
        ConfigError: the checkpoint does not exist or is of another network, its image size is unknown or cannot be
            used, or ``out`` is not empty.
        UnsafeInputError: a file is damaged, or reading it could run code.
        MachineError: the folder cannot be written; nothing of it remains.
    """
    check_new_folder(out)
    # memory-mapped, as in each of the functions below that read the file
    weights, own = official.checkpoint_files.read_checkpoint(checkpoint)
    given = _given_settings(hyper_parameters, encoder_num_res_blocks, num_heads)
    with official.checkpoint_files.named_after(checkpoint):
        settings, assumed = official.weights.official_settings(own, given)
        diffusions = settings.diffusion(), settings.diffusion(of_latents=True)
    network = official.load_official(checkpoint, given)
    size = [image_size] * network.spatial_dims if image_size else _image_size(checkpoint, weights, network, settings)
    check_image_size(network, size)
    has_latent = official.latent.select_latent(weights) is not None
    latent = _latent(checkpoint, latent_statistics, given, network.z_channels) if has_latent else None
    if latent is None:
        if latent_statistics is not None:
            raise ConfigError(f"latent_statistics: {checkpoint.name} has no latent DDIM that they belong to; omit them")
        logger.info("the checkpoint has no latent DDIM: it can encode and decode images, but not generate new ones")
    _log_settings(settings, assumed, has_latent=latent is not None)
    head = None
    if classifier is not None:
        head = official.load_official_head(classifier)
        if head.weight.shape[1] != network.z_channels or len(classes) not in (0, len(head.bias)):
            has = f"has {len(head.bias)} classes of a z_sem of {head.weight.shape[1]} numbers"
            raise ConfigError(f"classifier: {classifier.name} {has}; give its model, and as many names as classes")
        if len(set(classes)) < len(classes):
            raise ConfigError("classes: a name is given twice; give each class a name of its own")
    elif classes:
        raise ConfigError("classes: are those of a classifier; give it, too, or omit them")
    description = _description(network, size, {**_DIFFUSION, **diffusions[0], "clip_range": "@model_range"})
    provenance = {
        "source": "official phizaz/diffae checkpoint",
        "file_sha256": file_checksum(checkpoint),
        "weights": official.weights.select_model(weights)[0],
        "monai_diffae": __version__,
    }
    with tempfile.TemporaryDirectory() as temporary:
        models = Path(temporary)
        file = write_model(models / layout.MODEL, "autoencoder", network.state_dict(), description)
        write_json(models / layout.PROVENANCE, provenance)
        if latent is not None:
            # the official code clips to [-1, 1]
            clip_range = [-1.0, 1.0] if settings.latent_clip_sample else None
            latent_diffusion = {**_DIFFUSION, **diffusions[1], "clip_range": clip_range}
            described = _latent_description(latent, latent_diffusion, checksum(file))
            write_model(models / layout.LATENT_MODEL, "latent", latent.state_dict(), described)
        init_bundle(out, file)
        for direction in () if head is None else _directions(head, classes, checksum(file)):
            write_json(out / "directions" / f"{safe_file_name(direction.target)}.json", direction.to_json())
    logger.info(
        "%s: a Diff-AE of %.1f M parameters for images of %s with %d channels, z_sem of %d",
        out.name,
        sum(p.numel() for p in network.parameters()) / 1e6,
        " x ".join(map(str, size)),
        network.in_channels,
        network.z_channels,
    )
    return Result(out)


def _given_settings(
    hyper_parameters: Path | None, encoder_num_res_blocks: int | None, num_heads: int | None
) -> dict[str, Any]:
    named = {"net_enc_num_res_blocks": encoder_num_res_blocks, "net_beatgans_attn_head": num_heads}
    options = {name: value for name, value in named.items() if value is not None}
    if hyper_parameters is None:
        return options
    if not hyper_parameters.is_file():
        raise ConfigError(f"{hyper_parameters.name}: there is no such file").at(hyper_parameters)
    return read_values(hyper_parameters, "save it as JSON again") | options


def _log_settings(settings: official.weights.OfficialSettings, assumed: list[str], *, has_latent: bool) -> None:
    """Log the settings that the weights do not show; those that are assumed as a warning."""
    texts: dict[bool, list[str]] = {True: [], False: []}  # by whether they are assumed
    for name, value in asdict(settings).items():
        if value is not None and (has_latent or "latent" not in name):
            texts[name in assumed].append(f"{name} {value}")
    if texts[False]:
        logger.info("from the checkpoint's hyper_parameters or the options: %s", ", ".join(texts[False]))
    if texts[True]:
        text = "not in the checkpoint, so taken from the released models: %s; set others with hyper_parameters"
        logger.warning(text, ", ".join(texts[True]))


def _image_size(
    checkpoint: Path,
    weights: Mapping[str, torch.Tensor],
    network: networks.DiffusionAutoencoder,
    settings: official.weights.OfficialSettings,
) -> list[int]:
    """The image size for which the network was trained."""
    x_T = weights.get("x_T")
    if x_T is not None and x_T.ndim == network.spatial_dims + 2:
        size = list(x_T.shape[2:])
        logger.info("image size %s, which is that of x_T in the checkpoint", " x ".join(map(str, size)))
        return size
    if settings.img_size is not None:
        return [settings.img_size] * network.spatial_dims
    levels = _arguments(network, "unet")["attention_levels"]
    if len(levels) != 1:
        raise ConfigError(
            f"image_size: is unknown, as {checkpoint.name} has no x_T, and attention at {len(levels)} levels; "
            "give a value"
        )
    side = _ATTENTION_SIZE * 2 ** levels[0]
    logger.warning(
        "image size %d is a guess: at this size, the network's attention sees 16 x 16, as in the released models; if "
        "the model was trained at another size, z_sem is wrong: set image_size",
        side,
    )
    return [side] * network.spatial_dims


def _latent(checkpoint: Path, statistics: Path | None, given: Mapping[str, Any], z_channels: int) -> networks.LatentMLP:
    """The checkpoint's latent DDIM."""
    latent = official.load_official_latent(checkpoint, statistics, given)
    if latent.z_channels != z_channels:
        raise ConfigError(
            f"{checkpoint.name}: the latent DDIM is for a z_sem of {latent.z_channels}, but the encoder's has "
            f"{z_channels}; choose a checkpoint in which both belong together"
        )
    if latent.z_std.isnan().any():
        logger.warning("the mean and std of z_sem are not in the checkpoint; latent_statistics adds them")
    return latent


def _directions(head: official.LinearHead, classes: Sequence[str], model: str) -> Iterator[latents.Direction]:
    """A direction for each class of an official classifier, along its weight as in the official code."""
    names = classes or [f"class_{number}" for number in range(len(head.bias))]
    statistics = latents.LatentStatistics(head.mean.numpy(), head.std.numpy())
    for name, weight, bias in zip(names, head.weight.double().numpy(), head.bias.tolist(), strict=True):
        slope = float(np.linalg.norm(weight))
        line = weight / slope
        yield latents.Direction(
            name,
            "binary",
            (targets.rest_of(name), name),
            weight=line,
            pattern=line,
            intercept=0.0,
            slope=slope,
            offset=bias,
            std=1.0,  # of normalised z_sem whose dimensions are not correlated
            statistics=statistics,
            model=model,
            regularisation=1.0,
            score=None,
            num_cases=0,
            num_omitted=0,
        )


def _description(network: networks.DiffusionAutoencoder, size: list[int], diffusion: dict[str, Any]) -> dict[str, Any]:
    """The description that a training would have written with the weights."""
    shipped = shipped_bundle(f"diffae_{network.spatial_dims}d") / "configs" / "train.json"
    config = {**json.loads(shipped.read_text()), **_OFFICIAL, "diffusion": diffusion, "image_size": size}
    shared = {key: value for key, value in _arguments(network, "unet").items() if key in config}
    config |= shared | ({"colour": "rgb"} if network.in_channels == 3 else {})
    for name in ("unet", "encoder"):
        # A value that the shipped config shares between the networks stays a key of its own.
        arguments = {
            key: f"@{key}" if key in shared and shared[key] == value else value
            for key, value in _arguments(network, name).items()
        }
        config["network_def"][name] = {"_target_": config["network_def"][name]["_target_"], **arguments}
    parser = parsing.Parser(config)
    parser.parse()
    return {**describe(parser), "versions": versions()}


def _arguments(network: networks.DiffusionAutoencoder, name: str) -> dict[str, Any]:
    """The arguments with which the encoder or the UNet was built."""
    arguments: dict[str, Any] = getattr(network, name).config
    return arguments


def _latent_description(
    latent: networks.LatentMLP, diffusion: dict[str, Any], autoencoder_sha256: str
) -> dict[str, Any]:
    """The description that a training of the latent DDIM would have written with its weights."""
    return {
        "latent_network_def": {"_target_": "monai_diffae.networks.LatentMLP", **latent.config},
        "latent_inferer": {"_target_": "monai_diffae.inferers.LatentInferer", "schedule": "@latent_diffusion"},
        "latent_diffusion": diffusion,
        "z_channels": latent.z_channels,
        "autoencoder_sha256": autoencoder_sha256,
        "versions": versions(),
    }
