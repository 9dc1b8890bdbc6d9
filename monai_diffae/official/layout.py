"""Derives the network from the names and shapes of official Diff-AE weights; unsupported networks are errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from monai_diffae.errors import ConfigError

StateDict = Mapping[str, torch.Tensor]

# Names that only unsupported networks of the official code have, and its setting that leads to them.
_FOREIGN_NAMES = (
    (r"\.op\.|^output_blocks\.\d+\.\d\.conv\.", "convolutions that change the resolution (resblock_updown=False)"),
    (r"^encoder\.out\.(?![03]\.)", "an encoder that does not end in a mean over the image (enc_pool)"),
    (r"^time_embed\.(?!time_embed\.)", "another mixture of time and z_sem (style_time_mode)"),
    (r"^encoder\.time_embed\.", "an encoder with the time step as input (use_time_condition)"),
    (r"emb_inlayers\.", "conditions before a block's first convolution (resnet_use_inlayers_condition)"),
    (r"\.cond2_emb_layers\.", "a third condition (three_cond)"),
    (r"\.after_norm\.", "a norm after each block (resnet_use_after_norm)"),
    (r"^(initial|initial_conv|pre_blocks|merger)\b", "a decoder with an initial part of its own (has_init)"),
    (r"^label_emb\.", "class labels (num_classes)"),
    (r"^(noise_net|vectorizer)\.", "a network from noise to z_sem (net_noise_type)"),
)


def infer_config(weights: StateDict, encoder_num_res_blocks: int | None = None) -> dict[str, Any]:
    """The arguments of :func:`~monai_diffae.networks.build_autoencoder` for official weights.

    Args:
        weights: weights with the official names, without a prefix; only names and shapes are used.
        encoder_num_res_blocks: the encoder's residual blocks per level (``net_enc_num_res_blocks``); required if more
            than one number fits the weights.

    Raises:
        ConfigError: the weights are those of another network, or ``encoder_num_res_blocks`` is required.
        KeyError: a tensor is missing.
    """
    _refuse_other_networks(weights)
    stem = weights["input_blocks.0.0.weight"]
    time_embed_channels, base = weights["time_embed.time_embed.0.weight"].shape
    num_res_blocks = _unet_res_blocks(weights)
    levels = _levels(weights, "", num_res_blocks)
    if levels is None:
        raise ConfigError(
            "the UNet's widths or its attention differ within a level, as in no official Diff-AE; download it again"
        )
    if encoder_num_res_blocks is None:
        encoder_num_res_blocks = _encoder_res_blocks(weights, num_res_blocks, len(levels))
    encoder_levels = _levels(weights, "encoder.", encoder_num_res_blocks)
    if encoder_levels is None:
        raise ConfigError(
            f"encoder_num_res_blocks: {encoder_num_res_blocks} does not fit the encoder's weights; omit it"
        )
    out_channels = weights["out.2.weight"].shape[0]
    if out_channels != stem.shape[1]:
        raise _unsupported(f"a UNet that predicts {out_channels} channels for images with {stem.shape[1]}")
    return {
        "spatial_dims": stem.ndim - 2,
        "in_channels": stem.shape[1],
        "base_channels": base,
        "channel_mult": _multipliers(levels, base),
        "encoder_base_channels": base,
        "encoder_channel_mult": _multipliers(encoder_levels, base),
        "num_res_blocks": num_res_blocks,
        "attention_levels": [i for i, (_, has_attention) in enumerate(levels) if has_attention],
        "encoder_attention_levels": [i for i, (_, has_attention) in enumerate(encoder_levels) if has_attention],
        "z_channels": weights["encoder.out.3.weight"].shape[0],
        "time_embed_channels": time_embed_channels,
        "encoder_in_channels": weights["encoder.input_blocks.0.0.weight"].shape[1],
        "encoder_num_res_blocks": encoder_num_res_blocks,
    }


def _refuse_other_networks(weights: StateDict) -> None:
    """Check that the weights have no setting of the official code that this package does not support."""
    stem = weights["input_blocks.0.0.weight"]
    if not any(name.startswith("encoder.") for name in weights):
        raise _unsupported("no encoder, as the DDPM and DDIM baselines")
    for pattern, meaning in _FOREIGN_NAMES:
        if any(re.search(pattern, name) for name in weights):
            raise _unsupported(meaning)
    for blocks in ("input_blocks", "output_blocks", "encoder.input_blocks"):
        numbers = _numbers(weights, blocks)
        if numbers != list(range(len(numbers))):
            raise _unsupported(f"{blocks} without weights (resblock_updown=False)")
    if not any(".cond_emb_layers." in name for name in weights):
        raise _unsupported("one condition per block (resnet_two_cond=False)")
    for middle in ("middle_block.", "encoder.middle_block."):
        if f"{middle}2.in_layers.0.weight" in weights and f"{middle}1.qkv.weight" not in weights:
            raise _unsupported("no attention in the middle (use_mid_attn=False)")
    _refuse_other_shapes(weights, stem)


def _refuse_other_shapes(weights: StateDict, stem: torch.Tensor) -> None:
    """The part of :func:`_refuse_other_networks` about shapes."""
    if stem.ndim != 4:
        # The official blocks halve two of the three axes of volumes, and the encoder's pooling is for images only.
        raise _unsupported(f"they are {stem.ndim - 2}D, but the official code is for 2D images")
    for name, norm in weights.items():
        width = norm.shape[0] if norm.ndim == 1 and name.endswith(".weight") else 0  # other weights have more axes
        if width > 32 and width % 32:
            raise _unsupported(f"a width of {width}, which is not a multiple of the official 32 groups of GroupNorm")
    width = weights["middle_block.0.out_layers.0.weight"].shape[0]
    if weights["middle_block.0.emb_layers.1.weight"].shape[0] != 2 * width:
        raise _unsupported("a scale without a shift from the time step (resnet_time_emb_2xwidth=False)")
    z_projection = weights["middle_block.0.cond_emb_layers.1.weight"]
    if z_projection.shape[0] == 2 * width:
        raise _unsupported("scale and shift from z_sem (resnet_cond_emb_2xwidth=True)")
    z_channels = weights["encoder.out.3.weight"].shape[0]
    if z_channels == 2 * z_projection.shape[1]:
        raise _unsupported("an encoder that gives a mean and a variance (is_stochastic)")
    if z_channels != z_projection.shape[1]:
        raise _unsupported(f"an encoder that gives {z_channels} numbers and a UNet that takes {z_projection.shape[1]}")
    if weights["out.2.weight"].shape[0] == 2 * stem.shape[1]:
        raise _unsupported("a learned variance (beatgans_model_var_type)")


def _unsupported(meaning: str) -> ConfigError:
    return ConfigError(f"these weights cannot be imported: {meaning}; use the code that they were trained with")


def _unet_res_blocks(weights: StateDict) -> int:
    """The UNet's residual blocks per level on the way down; on the way up there is one more, before the upsampling."""
    stages = len(_numbers(weights, "output_blocks"))
    upsampling = [
        i for i in range(stages) if any(f"output_blocks.{i}.{j}.in_layers.0.weight" in weights for j in (1, 2))
    ]
    num_res_blocks = upsampling[0] if upsampling else stages - 1
    if num_res_blocks < 1 or upsampling != list(range(num_res_blocks, stages - 1, num_res_blocks + 1)):
        raise ConfigError(
            "the output_blocks are not in levels, unlike in any official Diff-AE; download the file again"
        )
    if len(_numbers(weights, "input_blocks")) != stages:
        raise _unsupported("another number of blocks on the way down than on the way up (num_input_res_blocks)")
    return num_res_blocks


def _encoder_res_blocks(weights: StateDict, unet_blocks: int, unet_levels: int) -> int:
    """The encoder's residual blocks per level: as nothing marks the end of a level, the usual number that fits."""
    blocks = len(_numbers(weights, "encoder.input_blocks"))  # with the stem: levels * (n + 1)
    fitting = [n for n in range(1, blocks) if _levels(weights, "encoder.", n) is not None]
    # usually as many blocks as in the UNet, or one level more than in the UNet
    usual = [n for n in fitting if n == unet_blocks or blocks == (unet_levels + 1) * (n + 1)]
    candidates = usual or fitting
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise ConfigError(
            "the encoder's widths or its attention differ within a level, as in no official Diff-AE; download it again"
        )
    numbers = " or ".join(map(str, candidates))
    raise ConfigError(
        f"encoder_num_res_blocks: {numbers} residual blocks per level fit the encoder's weights; choose one "
        "(net_enc_num_res_blocks in the official configuration)"
    )


def _levels(weights: StateDict, prefix: str, num_res_blocks: int) -> list[tuple[int, bool]] | None:
    """Width and attention of each level; None if the blocks do not fit ``num_res_blocks`` per level.

    Block 0 is the stem. Each level then has ``num_res_blocks`` blocks, all of them with attention or none. All levels
    but the last have one more block, which halves the resolution, has the same width and no attention.
    """
    blocks = len(_numbers(weights, f"{prefix}input_blocks"))
    if num_res_blocks < 1 or blocks % (num_res_blocks + 1):
        return None
    width_before = weights[f"{prefix}input_blocks.0.0.weight"].shape[0]
    levels = []
    for first in range(1, blocks, num_res_blocks + 1):
        names = [f"{prefix}input_blocks.{i}." for i in range(first, min(first + num_res_blocks + 1, blocks))]
        widths = {weights[f"{name}0.in_layers.2.weight"].shape[0] for name in names}
        attention = [f"{name}1.qkv.weight" in weights for name in names]
        is_at_stem = first == 1
        if len(widths) > 1 or (is_at_stem and widths != {width_before}):
            return None
        if len(set(attention[:num_res_blocks])) > 1 or any(attention[num_res_blocks:]):
            return None
        levels.append((widths.pop(), attention[0]))
    return levels


def _multipliers(levels: list[tuple[int, bool]], base: int) -> list[int]:
    """The widths of the levels as multiples of ``base``."""
    for width, _ in levels:
        if width % base:
            raise _unsupported(f"a width of {width}, which is not a multiple of the {base} model_channels")
    return [width // base for width, _ in levels]


def _numbers(weights: StateDict, blocks: str) -> list[int]:
    """The numbers of the blocks that have weights."""
    match: Callable[[str], re.Match[str] | None] = re.compile(re.escape(blocks) + r"\.(\d+)\.").match
    return sorted({int(result.group(1)) for result in map(match, weights) if result})
