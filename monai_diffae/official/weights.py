"""Converts weights of the official Diff-AE code (phizaz/diffae) to this package's networks.

The network is derived from the tensors, so a state dict is enough. Files are read without running any code that they
may contain: ``.safetensors``, or PyTorch files with ``weights_only=True``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from monai_diffae.errors import ConfigError
from monai_diffae.networks.autoencoder import DiffusionAutoencoder
from monai_diffae.networks.presets import build_autoencoder
from monai_diffae.official.checkpoint_files import named_after, read_checkpoint
from monai_diffae.official.layout import StateDict, infer_config
from monai_diffae.official.settings import official_settings

logger = logging.getLogger(__name__)

# Patterns of official names (by position) and this package's names; the order matters.
RENAMES = (
    (r"^time_embed\.time_embed\.", "time_embed."),
    (r"^input_blocks\.0\.0\.", "stem."),
    (r"^middle_block\.", "middle_stage."),
    (r"^out\.", "head."),
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.cond_emb_layers\.1\.", ".z_projection."),
    (r"\.emb_layers\.1\.", ".time_projection."),
    (r"\.skip_connection\.", ".skip."),
    (r"\.proj_out\.", ".out."),
)

# Arguments of build_autoencoder that cannot be derived from the weights, or not always, and their official names.
_SETTINGS = {"num_heads": "net_beatgans_attn_head", "encoder_num_res_blocks": "net_enc_num_res_blocks"}
_OVERRIDES = (*_SETTINGS, "dropout", "use_checkpoint")
# Buffers of Lightning beside the model.
_BESIDE = ("x_T", "conds_mean", "conds_std")


def load_official(
    source: str | Path | StateDict, hyper_parameters: Mapping[str, Any] | None = None, **overrides: Any
) -> DiffusionAutoencoder:
    """Load the official code's model as a :class:`DiffusionAutoencoder`, in evaluation mode.

    Every setting of the official code is either supported or refused with its name, except for those that leave no
    trace in the weights. They are read from the checkpoint's ``hyper_parameters``; where these are silent, from the
    arguments; and else they are those of the released models (1 attention head). So are old settings (``enc_tanh``,
    ``time_first``, ``condition_scale_bias``, ``cond_at``, ``time_at``).

    Args:
        source: a ``.safetensors`` file, a checkpoint of the official training (its ``ema_model`` is used), or a state
            dict with the official names, with or without a prefix ``ema_model.`` or ``model.``.
        hyper_parameters: values of the official ``TrainConfig`` by their names, if ``source`` has none.
        **overrides: ``dropout``, ``use_checkpoint``, and if ``hyper_parameters`` do not have them ``num_heads``, and
            ``encoder_num_res_blocks`` if more than one number fits the weights.

    Raises:
        UnsafeInputError: the file is damaged, or reading it could run code.
        ConfigError: the file does not exist, the weights are not those of an official Diff-AE, or an argument is not
            what the checkpoint says.

    Example:
        >>> load_official({"encoder.fc.weight": torch.zeros(2, 2)})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: these are not the weights of an official Diff-AE: input_blocks.0.0.weight ...
    """
    for name in overrides:
        if name not in _OVERRIDES:
            raise ConfigError(f"{name}: is derived from the weights; only {', '.join(_OVERRIDES)} can be given")
    weights, own = read_checkpoint(source) if isinstance(source, (str, Path)) else (source, {})
    with named_after(source):
        given = {**(hyper_parameters or {}), **{_SETTINGS[n]: overrides.pop(n) for n in _SETTINGS if n in overrides}}
        settings, _ = official_settings(own, given)
        which, model = select_model(weights)
        overrides = {"num_heads": settings.net_beatgans_attn_head, **overrides}
        network = _network(model, settings.net_enc_num_res_blocks, overrides)
    if which != "ema_model":
        logger.warning("no ema_model in it: its weights are used, which may not be averaged over the training")
    return network


def _network(weights: StateDict, encoder_num_res_blocks: int | None, overrides: dict[str, Any]) -> DiffusionAutoencoder:
    if "layers.0.linear.weight" in weights or not weights:
        raise ConfigError(
            "there is no autoencoder in it; choose the autoencoder's checkpoint, not that of a latent DDIM alone"
        )
    try:
        config = infer_config(weights, encoder_num_res_blocks)
        with torch.device("meta"):  # without random numbers, which would be replaced at once
            network = build_autoencoder(**{**config, **overrides})
    except ConfigError:
        raise
    except KeyError as error:
        raise ConfigError(f"these are not the weights of an official Diff-AE: {error.args[0]} is missing") from error
    except (ValueError, IndexError, ArithmeticError) as error:  # the layout is derived from shapes
        raise ConfigError(
            "these are not the weights of an official Diff-AE: a tensor lacks axes, or is empty"
        ) from error
    network.load_state_dict(fitted(weights, our_name, network.state_dict()), assign=True)
    return network.eval()


def select_model(weights: StateDict) -> tuple[Literal["ema_model", "model", "bare"], dict[str, torch.Tensor]]:
    """Select the autoencoder in a state dict: names with ``ema_model.``, else with ``model.``, else all names.

    Args:
        weights: the official state dict.

    Returns:
        The prefix (``bare``: none), and the weights without it. A latent DDIM in the same checkpoint and the buffers
        beside the model are omitted.
    """
    which: Literal["ema_model", "model", "bare"] = "bare"
    inner = {name: tensor for name, tensor in weights.items() if name not in _BESIDE}
    for prefix in ("ema_model", "model"):
        model = {n[len(prefix) + 1 :]: tensor for n, tensor in weights.items() if n.startswith(f"{prefix}.")}
        if model:
            which, inner = ("ema_model", model) if prefix == "ema_model" else ("model", model)
            break
    return which, {name: tensor for name, tensor in inner.items() if not name.startswith("latent_net.")}


def fitted(weights: StateDict, rename: Callable[[str], str], own: StateDict) -> dict[str, torch.Tensor]:
    """Official tensors with this package's names and shapes, as contiguous float32: exactly those of the network.

    Args:
        weights: weights with the official names.
        rename: turns an official name into this package's.
        own: the state dict of this package's network; only names and shapes are used.

    Raises:
        ConfigError: a tensor is missing or too many, has another shape or is not a floating-point tensor, is expanded
            from fewer numbers, or has a value that is not finite (in float32).
    """
    ours: dict[str, torch.Tensor] = {}
    misfits = []
    for name, tensor in weights.items():
        key = rename(name)
        if key in ours or key not in own or not _fits(tensor, own[key].shape):
            misfits.append(name)
            continue
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConfigError(
                f"{name}: holds fewer numbers than its shape {tuple(tensor.shape)}; save a contiguous copy"
            )
        tensor = tensor.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
        if not tensor.isfinite().all():
            raise ConfigError(
                f"{name}: has values that are not finite; download it again, or take an earlier checkpoint"
            )
        ours[key] = tensor.reshape(own[key].shape)
    missing = own.keys() - {rename(name) for name in weights}
    if misfits or missing:
        lists = [
            (_few(misfits), "too many or of another shape or kind"),
            (_few(missing), "missing (named as in this package)"),
        ]
        reasons = "; ".join(f"{few} {wrong}" for few, wrong in lists if few)
        raise ConfigError(f"these weights do not fit the network that their shapes describe: {reasons}")
    return ours


def _fits(tensor: torch.Tensor, shape: torch.Size) -> bool:
    """Whether a tensor has a shape, also with further axes of length 1: convolutions of size 1 are linear layers."""
    is_plain = tensor.layout is torch.strided and tensor.is_floating_point() and not tensor.is_meta
    return is_plain and tensor.shape == shape + (1,) * (tensor.ndim - len(shape))


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more


def our_name(name: str) -> str:
    """The name of an official tensor in :class:`DiffusionAutoencoder`.

    Example:
        >>> our_name("encoder.input_blocks.3.0.in_layers.2.weight"), our_name("output_blocks.2.1.qkv.bias")
        ('encoder.stages.2.0.conv1.weight', 'unet.up_stages.2.attention.qkv.bias')
    """
    key = name.removeprefix("encoder.")
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    if name.startswith("encoder."):
        key = re.sub(r"^input_blocks\.(\d+)\.", _encoder_stage, key)
        return "encoder." + key.replace("head.3.", "head.4.")
    return "unet." + re.sub(r"^(\w+_blocks\.\d+|middle_stage)\.(\d)\.(\w+)", _unet_stage, key)


def _encoder_stage(match: re.Match[str]) -> str:
    return f"stages.{int(match.group(1)) - 1}."


def _unet_stage(match: re.Match[str]) -> str:
    stage, position, layer = match.groups()
    if stage.startswith("input_blocks."):
        stage = f"down_stages.{int(stage.removeprefix('input_blocks.')) - 1}"
    stage = stage.replace("output_blocks.", "up_stages.")
    if position == "0":
        return f"{stage}.block.{layer}"
    return f"{stage}.{'attention' if layer in ('norm', 'qkv', 'out') else 'last_block'}.{layer}"
