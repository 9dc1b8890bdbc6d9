"""Weights of the official Diff-AE implementation in our networks.

The configuration is read off the tensors, so a state dict is all it takes. Files are read without running any
code that they may hold: ``.safetensors``, or PyTorch files by ``weights_only=True``; there is no other way in.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from monai_diffae.errors import ConfigError, UnsafeInputError
from monai_diffae.networks.autoencoder import DiffusionAutoencoder

StateDict = Mapping[str, torch.Tensor]

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

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


def load_official(source: str | Path | StateDict, **overrides: Any) -> DiffusionAutoencoder:
    """The official code's model with its weights, in eval mode, as a :class:`DiffusionAutoencoder`.

    Args:
        source: a ``.safetensors`` file, a checkpoint of the official training (its ``ema_model`` is taken), or a
            state dict under the official names, with or without a prefix ``ema_model.`` or ``model.``.
        **overrides: arguments of :class:`DiffusionAutoencoder` that leave no trace in the weights:
            ``num_heads``, ``dropout``, ``use_checkpoint``.

    Raises:
        UnsafeInputError: a file that is damaged or that cannot be read without running code from it.
        ConfigError: a file that does not exist, or weights that are not those of an official Diff-AE.

    Example:
        >>> load_official({"encoder.fc.weight": torch.zeros(2, 2)})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: these are not the weights of an official Diff-AE: input_blocks.0.0.weight ...
    """
    weights = official_state_dict(read_weights(source) if isinstance(source, (str, Path)) else source)
    try:
        config = infer_config(weights)
        ours = rename(weights)
    except KeyError as error:
        raise ConfigError(f"these are not the weights of an official Diff-AE: {error.args[0]} is missing") from error
    network = DiffusionAutoencoder(**{**config, **overrides})
    # linear layers instead of convolutions of size 1 over tokens and over the pooled vector
    own = network.state_dict()
    for key in own.keys() & ours.keys():
        if own[key].numel() == ours[key].numel():
            ours[key] = ours[key].reshape(own[key].shape)
    try:
        network.load_state_dict(ours)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"these weights do not fit the Diff-AE that their shapes describe: {reason}") from error
    return network.eval()


def official_state_dict(weights: StateDict) -> dict[str, torch.Tensor]:
    """The one model in a state dict: what is behind ``ema_model.``, else behind ``model.``, else all of it.

    A latent DDIM that the same checkpoint may hold is left out.
    """
    for prefix in ("ema_model.", "model."):
        inner = {key[len(prefix) :]: tensor for key, tensor in weights.items() if key.startswith(prefix)}
        if inner:
            weights = inner
            break
    return {key: tensor for key, tensor in weights.items() if not key.startswith("latent_net.")}


def infer_config(weights: StateDict) -> dict[str, Any]:
    """The arguments of :class:`DiffusionAutoencoder` for official weights, from names and shapes alone.

    Raises:
        KeyError: a tensor is missing.
    """
    stem = weights["input_blocks.0.0.weight"]
    base_channels, in_channels, spatial_dims = stem.shape[0], stem.shape[1], stem.ndim - 2
    encoder_base, encoder_in_channels = weights["encoder.input_blocks.0.0.weight"].shape[:2]
    # the first stage going up with a second residual block is the last one of its level
    stages = _count(weights, "output_blocks")
    upsampling = (i for i in range(stages) for j in (1, 2) if f"output_blocks.{i}.{j}.in_layers.0.weight" in weights)
    num_res_blocks = next(upsampling, stages - 1)
    mult, attention = _levels(weights, "", num_res_blocks, base_channels)
    encoder_mult, encoder_attention = _levels(weights, "encoder.", num_res_blocks, encoder_base)
    return {
        "spatial_dims": spatial_dims,
        "in_channels": in_channels,
        "out_channels": weights["out.2.weight"].shape[0],
        "base_channels": base_channels,
        "channel_mult": mult,
        "encoder_base_channels": encoder_base,
        "encoder_channel_mult": encoder_mult,
        "num_res_blocks": num_res_blocks,
        "attention_levels": attention,
        "encoder_attention_levels": encoder_attention,
        "z_channels": weights["encoder.out.3.weight"].shape[0],
        "time_embed_channels": weights["time_embed.time_embed.0.weight"].shape[0],
        "encoder_in_channels": encoder_in_channels,
    }


def _count(weights: StateDict, blocks: str) -> int:
    pattern = re.compile(re.escape(blocks) + r"\.(\d+)\.")
    return len({match.group(1) for match in map(pattern.match, weights) if match})


def _levels(weights: StateDict, prefix: str, num_res_blocks: int, base_channels: int) -> tuple[list[int], list[int]]:
    """Multipliers and attention levels: input block 0 is the stem, then come num_res_blocks + 1 blocks a level."""
    mult: list[int] = []
    attention: list[int] = []
    for first in range(1, _count(weights, f"{prefix}input_blocks"), num_res_blocks + 1):
        level_width = weights[f"{prefix}input_blocks.{first}.0.in_layers.2.weight"].shape[0]
        if f"{prefix}input_blocks.{first}.1.qkv.weight" in weights:
            attention.append(len(mult))
        mult.append(level_width // base_channels)
    return mult, attention


def rename(weights: StateDict) -> dict[str, torch.Tensor]:
    """Official names -> ours, for the encoder and the UNet."""
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith("encoder."):
            key = re.sub(r"^input_blocks\.(\d+)\.", _encoder_stage, _rename_layers(name.removeprefix("encoder.")))
            renamed["encoder." + key.replace("head.3.", "head.4.")] = tensor
        else:
            key = re.sub(r"^(\w+_blocks\.\d+|middle_stage)\.(\d)\.(\w+)", _unet_stage, _rename_layers(name))
            renamed["unet." + key] = tensor
    return renamed


def _rename_layers(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


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


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors`` or PyTorch file; of a training's checkpoint, those of its ``state_dict``.

    Raises:
        ConfigError: there is no such file.
        UnsafeInputError: the file is damaged, or could only be read by running code that it holds.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UnsafeInputError(
            f"{path}: damaged, or holds more than tensors, and reading it could run code; "
            "in a place that you trust, save its state_dict alone, or as .safetensors"
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {key: tensor for key, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def read_safetensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a ``.safetensors`` file and its metadata (https://huggingface.co/docs/safetensors).

    Raises:
        UnsafeInputError: a header that is no JSON or does not describe the bytes that follow.
    """
    content = bytearray(Path(path).read_bytes())
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        if start > len(content):
            raise ValueError("a header longer than the file")
        header = json.loads(content[8:start])
        metadata = header.pop("__metadata__", {})
        return {name: _tensor(entry, content, start) for name, entry in header.items()}, metadata
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnsafeInputError(
            f"{path}: no intact .safetensors file ({type(error).__name__}); fetch it again"
        ) from error


def _tensor(entry: dict[str, Any], content: bytearray, start: int) -> torch.Tensor:
    dtype, shape = SAFETENSORS_DTYPES[entry["dtype"]], entry["shape"]
    first, end = entry["data_offsets"]
    count = math.prod(shape)
    if (
        not 0 <= first <= end <= len(content) - start
        or end - first != count * dtype.itemsize
        or min(shape, default=0) < 0
    ):
        raise ValueError("a tensor that lies outside of the file")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    # a copy, so that one tensor does not keep the whole file in memory
    return torch.frombuffer(content[start + first : start + end], dtype=dtype).reshape(shape)
