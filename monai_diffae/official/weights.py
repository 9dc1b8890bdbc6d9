"""Weights of the official Diff-AE implementation (phizaz/diffae) in our networks.

The configuration is read off the tensors, so a state dict is all it takes. Files are read without running any
code that they may hold: ``.safetensors``, or PyTorch files by ``weights_only=True``; there is no other way in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from monai_diffae.errors import ConfigError
from monai_diffae.networks.autoencoder import DiffusionAutoencoder
from monai_diffae.networks.presets import build_autoencoder
from monai_diffae.official.checkpoint_files import named_after, read_weights
from monai_diffae.official.layout import StateDict, infer_config

# the official modules by position -> ours by name; the order matters
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

# arguments of build_autoencoder that leave no trace in the weights, or only a faint one
_OVERRIDES = ("num_heads", "dropout", "use_checkpoint", "encoder_num_res_blocks")
# Lightning's own buffers beside the model
_BESIDE = ("x_T", "conds_mean", "conds_std")


def load_official(source: str | Path | StateDict, **overrides: Any) -> DiffusionAutoencoder:
    """The official code's model with its weights, in eval mode, as a :class:`DiffusionAutoencoder`.

    Everything that the official code can be configured to is either taken over or refused by name, but for what
    leaves no trace in the weights: ``num_heads`` is 1 unless it is given, and settings that only the official
    code's history knows (``enc_tanh``, ``time_first``, ``condition_scale_bias``, ``cond_at``, ``time_at``) are taken
    to be those of the released models.

    Args:
        source: a ``.safetensors`` file, a checkpoint of the official training (its ``ema_model`` is taken), or a
            state dict under the official names, with or without a prefix ``ema_model.`` or ``model.``.
        **overrides: ``num_heads``, ``dropout``, ``use_checkpoint``, and ``encoder_num_res_blocks`` where more than
            one number fits the weights.

    Raises:
        UnsafeInputError: a file that is damaged or that cannot be read without running code from it.
        ConfigError: a file that does not exist, or weights that are not those of an official Diff-AE.

    Example:
        >>> load_official({"encoder.fc.weight": torch.zeros(2, 2)})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: these are not the weights of an official Diff-AE: input_blocks.0.0.weight ...
    """
    for name in overrides:
        if name not in _OVERRIDES:
            raise ConfigError(f"{name}: this is read off the weights; only {', '.join(_OVERRIDES)} can be given")
    weights = read_weights(source) if isinstance(source, (str, Path)) else source
    with named_after(source):
        return _network(select_model(weights)[1], overrides)


def _network(weights: StateDict, overrides: dict[str, Any]) -> DiffusionAutoencoder:
    if "layers.0.linear.weight" in weights or not weights:
        raise ConfigError("there is no autoencoder in it, a latent DDIM at most; name the autoencoder's checkpoint")
    try:
        config = infer_config(weights, overrides.pop("encoder_num_res_blocks", None))
        with torch.device("meta"):  # no time for random numbers that are replaced at once
            network = build_autoencoder(**{**config, **overrides})
    except ConfigError:
        raise
    except KeyError as error:
        raise ConfigError(f"these are not the weights of an official Diff-AE: {error.args[0]} is missing") from error
    except (ValueError, IndexError, ArithmeticError) as error:  # the layout is read off shapes
        raise ConfigError(
            "these are not the weights of an official Diff-AE: a tensor lacks axes, or is empty"
        ) from error
    network.load_state_dict(fitted(weights, our_name, network.state_dict()), assign=True)
    return network.eval()


def select_model(weights: StateDict) -> tuple[Literal["ema_model", "model", "bare"], dict[str, torch.Tensor]]:
    """The one autoencoder in a state dict: behind ``ema_model.``, else behind ``model.``, else all of it.

    A latent DDIM that the same checkpoint may hold is left out, and so are the buffers beside the model.
    """
    which: Literal["ema_model", "model", "bare"] = "bare"
    inner = {name: tensor for name, tensor in weights.items() if name not in _BESIDE}
    for prefix in ("ema_model", "model"):
        found = {n[len(prefix) + 1 :]: tensor for n, tensor in weights.items() if n.startswith(f"{prefix}.")}
        if found:
            which, inner = ("ema_model", found) if prefix == "ema_model" else ("model", found)
            break
    return which, {name: tensor for name, tensor in inner.items() if not name.startswith("latent_net.")}


def fitted(weights: StateDict, rename: Callable[[str], str], own: StateDict) -> dict[str, torch.Tensor]:
    """Official tensors by our names, in our shapes, float32 and contiguous: exactly those of our network.

    Args:
        weights: under the official names.
        rename: an official name -> ours.
        own: the state dict of our network, of which the names and shapes count.

    Raises:
        ConfigError: a tensor is missing or too many, has another shape or is no floating-point tensor, or holds a
            value that is not finite (in float32).
    """
    ours: dict[str, torch.Tensor] = {}
    misfits = []
    for name, tensor in weights.items():
        key = rename(name)
        if key in ours or key not in own or not _fits(tensor, own[key].shape):
            misfits.append(name)
            continue
        tensor = tensor.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
        if not tensor.isfinite().all():
            raise ConfigError(f"{name}: holds values that are not finite; fetch the file again, or train anew")
        ours[key] = tensor.reshape(own[key].shape)
    missing = own.keys() - {rename(name) for name in weights}
    if misfits or missing:
        lists = [(_few(misfits), "too many or of another shape or kind"), (_few(missing), "missing (our names)")]
        reasons = "; ".join(f"{few} {wrong}" for few, wrong in lists if few)
        raise ConfigError(f"these weights do not fit the network that their shapes describe: {reasons}")
    return ours


def _fits(tensor: torch.Tensor, shape: torch.Size) -> bool:
    """Whether it has the shape, or has it with axes of length 1 behind: convolutions of size 1 are linear layers."""
    is_plain = tensor.layout is torch.strided and tensor.is_floating_point() and not tensor.is_meta
    return is_plain and tensor.shape == shape + (1,) * (tensor.ndim - len(shape))


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more


def our_name(name: str) -> str:
    """The name in :class:`DiffusionAutoencoder` of an official tensor.

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
