"""What the names and shapes of official Diff-AE weights say of their network, or why it is none of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from monai_diffae.errors import ConfigError

StateDict = Mapping[str, torch.Tensor]

# Names that only other networks of the official code have, with its own word for the setting that makes them.
_FOREIGN_NAMES = (
    (r"\.op\.|^output_blocks\.\d+\.\d\.conv\.", "convolutions that change the resolution (resblock_updown=False)"),
    (r"^encoder\.out\.(?![03]\.)", "an encoder that does not end in a mean over the image (enc_pool)"),
    (r"^time_embed\.(?!time_embed\.)", "another mixture of time and z_sem (style_time_mode)"),
    (r"^encoder\.time_embed\.", "an encoder that is told the time step (use_time_condition)"),
    (r"emb_inlayers\.", "conditions before a block's first convolution (resnet_use_inlayers_condition)"),
    (r"\.cond2_emb_layers\.", "a third condition (three_cond)"),
    (r"\.after_norm\.", "a norm after each block (resnet_use_after_norm)"),
    (r"^(initial|initial_conv|pre_blocks|merger)\b", "a decoder with a beginning of its own (has_init)"),
    (r"^label_emb\.", "class labels (num_classes)"),
    (r"^(noise_net|vectorizer)\.", "a network from noise to z_sem (net_noise_type)"),
)


def infer_config(weights: StateDict, encoder_num_res_blocks: int | None = None) -> dict[str, Any]:
    """The arguments of :func:`~monai_diffae.networks.build_autoencoder` for official weights.

    Args:
        weights: under the official names, without a prefix; of which only the names and shapes count.
        encoder_num_res_blocks: the encoder's blocks a level (``net_enc_num_res_blocks``), where more than one number
            fits the weights.

    Raises:
        ConfigError: these are the weights of something else, or ``encoder_num_res_blocks`` is needed.
        KeyError: a tensor is missing.
    """
    _refuse_other_networks(weights)
    stem = weights["input_blocks.0.0.weight"]
    time_embed_channels, base = weights["time_embed.time_embed.0.weight"].shape
    num_res_blocks = _unet_res_blocks(weights)
    levels = _levels(weights, "", num_res_blocks)
    if levels is None:
        raise ConfigError("the UNet's widths or its attention do not go level by level, as in no official Diff-AE")
    if encoder_num_res_blocks is None:
        encoder_num_res_blocks = _encoder_res_blocks(weights, num_res_blocks, len(levels))
    encoder_levels = _levels(weights, "encoder.", encoder_num_res_blocks)
    if encoder_levels is None:
        raise ConfigError(f"encoder_num_res_blocks={encoder_num_res_blocks} does not fit the encoder's weights")
    out_channels = weights["out.2.weight"].shape[0]
    if out_channels != stem.shape[1]:
        raise ConfigError(
            f"the network predicts {out_channels} channels of images that have {stem.shape[1]}; "
            "only networks that predict as many as they see can be used"
        )
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
    """Raise a ConfigError for the first thing that the official code knows and our network does not."""
    stem = weights["input_blocks.0.0.weight"]
    if not any(name.startswith("encoder.") for name in weights):
        raise _not_ours("no encoder, as the DDPM and DDIM baselines")
    for pattern, meaning in _FOREIGN_NAMES:
        if any(re.search(pattern, name) for name in weights):
            raise _not_ours(meaning)
    for blocks in ("input_blocks", "output_blocks", "encoder.input_blocks"):
        numbers = _numbers(weights, blocks)
        if numbers != list(range(len(numbers))):
            raise _not_ours(f"{blocks} without weights, as with resblock_updown=False")
    if not any(".cond_emb_layers." in name for name in weights):
        raise _not_ours("one condition a block (resnet_two_cond=False)")
    for middle in ("middle_block.", "encoder.middle_block."):
        if f"{middle}2.in_layers.0.weight" in weights and f"{middle}1.qkv.weight" not in weights:
            raise _not_ours("no attention in the middle (use_mid_attn=False)")
    _refuse_other_shapes(weights, stem)


def _refuse_other_shapes(weights: StateDict, stem: torch.Tensor) -> None:
    if stem.ndim != 4:
        # in volumes the official blocks halve two of the three axes, and its encoder's pooling takes images only
        raise _not_ours(f"{stem.ndim - 2}D, where the official code is for 2D images")
    for name, norm in weights.items():
        width = norm.shape[0] if norm.ndim == 1 and name.endswith(".weight") else 0  # all others have more axes
        if width > 32 and width % 32:
            raise _not_ours(f"a width of {width}, which the official 32 groups of GroupNorm do not divide")
    width = weights["middle_block.0.out_layers.0.weight"].shape[0]
    if weights["middle_block.0.emb_layers.1.weight"].shape[0] != 2 * width:
        raise _not_ours("a scale without a shift from the time step (resnet_time_emb_2xwidth=False)")
    of_z = weights["middle_block.0.cond_emb_layers.1.weight"]
    if of_z.shape[0] == 2 * width:
        raise _not_ours("scale and shift from z_sem (resnet_cond_emb_2xwidth=True)")
    z_channels = weights["encoder.out.3.weight"].shape[0]
    if z_channels == 2 * of_z.shape[1]:
        raise _not_ours("an encoder of a mean and a variance (is_stochastic)")
    if z_channels != of_z.shape[1]:
        raise _not_ours(f"an encoder that gives {z_channels} numbers and a UNet that takes {of_z.shape[1]}")
    if weights["out.2.weight"].shape[0] == 2 * stem.shape[1]:
        raise _not_ours("a learned variance (beatgans_model_var_type)")


def _not_ours(meaning: str) -> ConfigError:
    return ConfigError(f"these weights cannot be taken over: {meaning}; use the code that they were trained with")


def _unet_res_blocks(weights: StateDict) -> int:
    """Residual blocks a level going down: going up there is one more, whose stage ends with the upsampling block."""
    stages = len(_numbers(weights, "output_blocks"))
    upsampling = [
        i for i in range(stages) if any(f"output_blocks.{i}.{j}.in_layers.0.weight" in weights for j in (1, 2))
    ]
    num_res_blocks = upsampling[0] if upsampling else stages - 1
    if num_res_blocks < 1 or upsampling != list(range(num_res_blocks, stages - 1, num_res_blocks + 1)):
        raise ConfigError("the output_blocks do not go level by level, as in no official Diff-AE")
    if len(_numbers(weights, "input_blocks")) != stages:
        raise _not_ours("fewer or more blocks going down than going up (num_input_res_blocks)")
    return num_res_blocks


def _encoder_res_blocks(weights: StateDict, of_unet: int, unet_levels: int) -> int:
    """The encoder's residual blocks a level: nothing marks a level's end, so what fits and is usual counts."""
    blocks = len(_numbers(weights, "encoder.input_blocks"))  # with the stem: levels * (n + 1)
    fitting = [n for n in range(1, blocks) if _levels(weights, "encoder.", n) is not None]
    # usual are as many as in the UNet, and one level more than there
    usual = [n for n in fitting if n == of_unet or blocks == (unet_levels + 1) * (n + 1)]
    candidates = usual or fitting
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise ConfigError("the encoder's widths or its attention do not go level by level, as in no official Diff-AE")
    numbers = " or ".join(map(str, candidates))
    raise ConfigError(
        f"{numbers} residual blocks a level fit the encoder's weights: say which by encoder_num_res_blocks= "
        "(net_enc_num_res_blocks of the official configuration)"
    )


def _levels(weights: StateDict, prefix: str, num_res_blocks: int) -> list[tuple[int, bool]] | None:
    """Width and attention of every level; None where the blocks do not fit so many a level.

    Block 0 is the stem. Then every level has ``num_res_blocks``, all with attention or none, and all but the last
    one more that halves the resolution, of the same width and without attention.
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
    for width, _ in levels:
        if width % base:
            raise ConfigError(
                f"a width of {width} is no multiple of the {base} model_channels: it cannot be taken over"
            )
    return [width // base for width, _ in levels]


def _numbers(weights: StateDict, blocks: str) -> list[int]:
    match: Callable[[str], re.Match[str] | None] = re.compile(re.escape(blocks) + r"\.(\d+)\.").match
    return sorted({int(found.group(1)) for found in map(match, weights) if found})
