"""Converts weights of the official Diff-AE code (phizaz/diffae) to this package's networks.

The network is derived from the names and shapes of the tensors, so a state dict is enough; unsupported networks are
errors. Files are read without running any code that they may contain.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from monai_diffae.errors import ConfigError, quoted
from monai_diffae.networks.autoencoder import DiffusionAutoencoder, build_autoencoder
from monai_diffae.official.checkpoint_files import named_after, read_checkpoint

StateDict = Mapping[str, Tensor]

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

# Buffers of Lightning beside the model.
_BESIDE = ("x_T", "conds_mean", "conds_std")


@dataclass(frozen=True)
class OfficialSettings:
    """Settings with the names of the official ``TrainConfig``; the defaults are those of the released models."""

    net_beatgans_attn_head: int = 1
    net_enc_num_res_blocks: int | None = None
    img_size: int | None = None
    T: int = 1000
    beta_scheduler: str = "linear"
    beatgans_rescale_timesteps: bool = False
    net_latent_condition_bias: float = 1.0
    net_latent_time_last_act: bool = False
    latent_beta_scheduler: str = "const0.008"
    latent_rescale_timesteps: bool = False
    latent_clip_sample: bool = False
    latent_znormalize: bool = True

    def diffusion(self, of_latents: bool = False) -> dict[str, Any]:
        """The arguments of :class:`~monai_diffae.diffusion.DiffusionSchedule` for images, or for z_sem."""
        kind, prefix = ("latent_", "latent") if of_latents else ("", "beatgans")
        name, key = getattr(self, f"{kind}beta_scheduler"), f"{kind}beta_scheduler"
        if self.T != 1000 and getattr(self, f"{prefix}_rescale_timesteps"):
            raise ConfigError(f"{prefix}_rescale_timesteps with T {self.T} cannot be imported; use the official code")
        scale = 1000 / self.T
        betas: dict[str, Any]
        if name == "cosine":
            betas = {"schedule": "cosine_official"}
        elif name == "linear":
            betas = {"schedule": "linear_beta", "beta_start": scale * 0.0001, "beta_end": scale * 0.02}
        else:
            try:
                beta = scale * float(name.removeprefix("const"))
            except ValueError:
                raise ConfigError(f"{key}: the official code has no schedule {quoted(name)}; correct it") from None
            betas = {"schedule": "linear_beta", "beta_start": beta, "beta_end": beta}
        return {"num_train_timesteps": self.T, "prediction": "eps", **betas}


def official_settings(
    hyper_parameters: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> tuple[OfficialSettings, list[str]]:
    """The settings of a checkpoint, else the given, else the released models' ones; and the names of these last."""
    values: dict[str, Any] = {}
    for source in (hyper_parameters, given or {}):
        for field in fields(OfficialSettings):
            value: Any = source.get(field.name)
            if value is None:
                continue
            kind: Any = int if field.default is None else type(field.default)
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind or (kind is int and value < 1):
                raise ConfigError(f"{field.name}: is {quoted(value)}, which no official model has; correct it")
            if values.setdefault(field.name, value) != value:
                raise ConfigError(
                    f"{field.name} is {quoted(values[field.name])} in the checkpoint, but {quoted(value)} was given; "
                    "omit the option"
                )
    return OfficialSettings(**values), [field.name for field in fields(OfficialSettings) if field.name not in values]


def infer_config(weights: StateDict, encoder_num_res_blocks: int | None = None) -> dict[str, Any]:
    """The arguments of :func:`~monai_diffae.networks.build_autoencoder` for official weights without a prefix."""
    stem = weights["input_blocks.0.0.weight"]
    if stem.ndim != 4:  # the official blocks halve two of the three axes of volumes
        raise ConfigError(f"these weights cannot be imported: they are {stem.ndim - 2}D, the official code is 2D")
    time_embed_channels, base = weights["time_embed.time_embed.0.weight"].shape
    num_res_blocks = _unet_res_blocks(weights)
    levels = _levels(weights, "", num_res_blocks)
    if levels is None:
        raise _uneven("UNet")
    if encoder_num_res_blocks is None:
        encoder_num_res_blocks = _encoder_res_blocks(weights, num_res_blocks, len(levels))
    encoder_levels = _levels(weights, "encoder.", encoder_num_res_blocks)
    if encoder_levels is None:
        raise ConfigError(f"encoder_num_res_blocks: {encoder_num_res_blocks} does not fit the encoder; omit it")
    return {
        "spatial_dims": stem.ndim - 2,
        "in_channels": stem.shape[1],
        "base_channels": base,
        "channel_mult": [width // base for width, _ in levels],  # if it is no multiple, the weights do not fit
        "encoder_base_channels": base,
        "encoder_channel_mult": [width // base for width, _ in encoder_levels],
        "num_res_blocks": num_res_blocks,
        "attention_levels": [i for i, (_, has_attention) in enumerate(levels) if has_attention],
        "encoder_attention_levels": [i for i, (_, has_attention) in enumerate(encoder_levels) if has_attention],
        "z_channels": weights["encoder.out.3.weight"].shape[0],
        "time_embed_channels": time_embed_channels,
        "encoder_in_channels": weights["encoder.input_blocks.0.0.weight"].shape[1],
        "encoder_num_res_blocks": encoder_num_res_blocks,
    }


def _uneven(network: str) -> ConfigError:
    return ConfigError(
        f"the {network}'s widths or attention differ within a level, as in no Diff-AE; download it again"
    )


def _unet_res_blocks(weights: StateDict) -> int:
    """The UNet's residual blocks per level on the way down; on the way up there is one more, before the upsampling."""
    stages = len(_numbers(weights, "output_blocks"))
    upsampling = [
        i for i in range(stages) if any(f"output_blocks.{i}.{j}.in_layers.0.weight" in weights for j in (1, 2))
    ]
    return upsampling[0] if upsampling else stages - 1


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
        raise _uneven("encoder")
    numbers = " or ".join(map(str, candidates))
    option = "encoder_num_res_blocks (net_enc_num_res_blocks in hyper_parameters)"
    raise ConfigError(f"{option}: {numbers} residual blocks per level fit the encoder; choose one")


def _levels(weights: StateDict, prefix: str, num_res_blocks: int) -> list[tuple[int, bool]] | None:
    """Width and attention of each level; None if the blocks do not fit ``num_res_blocks`` per level."""
    # Block 0 is the stem. Each level then has ``num_res_blocks`` blocks, all of them with attention or none. All levels
    # but the last have one more block, which halves the resolution, has the same width and no attention.
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


def _numbers(weights: StateDict, blocks: str) -> list[int]:
    """The numbers of the blocks that have weights."""
    match: Callable[[str], re.Match[str] | None] = re.compile(re.escape(blocks) + r"\.(\d+)\.").match
    return sorted({int(result.group(1)) for result in map(match, weights) if result})


def load_official(
    source: str | Path | StateDict, hyper_parameters: Mapping[str, Any] | None = None
) -> DiffusionAutoencoder:
    """Load the official code's model as a :class:`DiffusionAutoencoder`, in evaluation mode.

    Every setting of the official code is either supported or refused, except for those that leave no trace in the
    weights. They are read from the checkpoint's ``hyper_parameters``; where these are silent, from the
    arguments; and else they are those of the released models (1 attention head). So are old settings (``enc_tanh``,
    ``time_first``, ``condition_scale_bias``, ``cond_at``, ``time_at``).

    Args:
        source: a ``.safetensors`` file, a checkpoint of the official training (its ``ema_model`` is used), or a state
            dict with the official names, with or without a prefix ``ema_model.`` or ``model.``.
        hyper_parameters: values of the official ``TrainConfig`` by their names, if ``source`` has none, such as
            ``net_beatgans_attn_head``, and ``net_enc_num_res_blocks`` if more than one number fits the weights.

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
    weights, own = read_checkpoint(source)
    with named_after(source):
        settings, _ = official_settings(own, hyper_parameters)
        which, model = select_model(weights)
        network = _network(model, settings)
    if which != "ema_model":
        logger.warning("no ema_model in it: its weights are used, which may not be averaged over the training")
    return network


def _network(weights: StateDict, settings: OfficialSettings) -> DiffusionAutoencoder:
    if "layers.0.linear.weight" in weights or not weights:
        raise ConfigError("there is no autoencoder in it; choose its checkpoint, not that of a latent DDIM alone")
    with derived_from_shapes("Diff-AE"), torch.device("meta"):  # no random numbers, which would be replaced at once
        config = infer_config(weights, settings.net_enc_num_res_blocks)
        divisor = 2 ** (len(config["channel_mult"]) - 1)  # the UNet's: the official encoder takes odd sizes
        heads = settings.net_beatgans_attn_head
        network = build_autoencoder(**config, num_heads=heads, encoder_size_divisors=divisor)
    network.load_state_dict(fitted(weights, our_name, network.state_dict()), assign=True)
    return network.eval()


@contextmanager
def derived_from_shapes(model: str) -> Iterator[None]:
    """Say what weights lack from which a layout cannot be derived."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, IndexError, ArithmeticError, KeyError) as error:
        lack = f"{error.args[0]} is missing" if isinstance(error, KeyError) else "a tensor lacks axes, or is empty"
        raise ConfigError(f"these are not the weights of an official {model}: {lack}") from error


def select_model(weights: StateDict) -> tuple[Literal["ema_model", "model", "bare"], dict[str, Tensor]]:
    """The autoencoder of a state dict without latent DDIM and buffers: ``ema_model.``, else ``model.``, else all."""
    which: Literal["ema_model", "model", "bare"] = "bare"
    inner = {name: tensor for name, tensor in weights.items() if name not in _BESIDE}
    for prefix in ("ema_model", "model"):
        model = {n[len(prefix) + 1 :]: tensor for n, tensor in weights.items() if n.startswith(f"{prefix}.")}
        if model:
            which, inner = ("ema_model", model) if prefix == "ema_model" else ("model", model)
            break
    return which, {name: tensor for name, tensor in inner.items() if not name.startswith("latent_net.")}


def fitted(weights: StateDict, rename: Callable[[str], str], own: StateDict) -> dict[str, Tensor]:
    """Official tensors with our names and shapes, as contiguous float32: exactly those of our state dict ``own``."""
    ours: dict[str, Tensor] = {}
    misfits = []
    for name, tensor in weights.items():
        key = rename(name)
        is_plain = tensor.layout is torch.strided and tensor.is_floating_point() and not tensor.is_meta
        # also with further axes of length 1: convolutions of size 1 are linear layers
        fits = key in own and tensor.shape == own[key].shape + (1,) * (tensor.ndim - own[key].ndim)
        if key in ours or not (is_plain and fits):
            misfits.append(name)
            continue
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConfigError(f"{name}: holds fewer numbers than {tuple(tensor.shape)}; save a contiguous copy")
        tensor = tensor.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
        if not tensor.isfinite().all():
            raise ConfigError(f"{name}: has values that are not finite; download it again, or take an earlier one")
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


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more


def our_name(name: str) -> str:
    """The name of an official tensor in :class:`DiffusionAutoencoder`."""
    key = name.removeprefix("encoder.")
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    if name.startswith("encoder."):
        key = re.sub(r"^input_blocks\.(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}.", key)
        return "encoder." + key.replace("head.3.", "head.4.")
    return "unet." + re.sub(r"^(\w+_blocks\.\d+|middle_stage)\.(\d)\.(\w+)", _unet_stage, key)


def _unet_stage(match: re.Match[str]) -> str:
    stage, position, layer = match.groups()
    if stage.startswith("input_blocks."):
        stage = f"down_stages.{int(stage.removeprefix('input_blocks.')) - 1}"
    stage = stage.replace("output_blocks.", "up_stages.")
    if position == "0":
        return f"{stage}.block.{layer}"
    return f"{stage}.{'attention' if layer in ('norm', 'qkv', 'out') else 'last_block'}.{layer}"
