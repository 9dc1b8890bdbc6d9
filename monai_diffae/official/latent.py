"""The latent DDIM of the official Diff-AE implementation (phizaz/diffae) as our network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from monai_diffae.errors import ConfigError
from monai_diffae.networks.latent_mlp import LatentMLP
from monai_diffae.official.checkpoint_files import named_after, read_weights
from monai_diffae.official.layout import StateDict
from monai_diffae.official.weights import fitted

# where the MLP may be, the best first
_PREFIXES = ("ema_model.latent_net.", "model.latent_net.", "latent_net.", "ema_model.", "model.", "")
_FIRST = "layers.0.linear.weight"
_OF_MLP = re.compile(r"(layers|time_embed)\.")


def load_official_latent(source: str | Path | StateDict, statistics: str | Path | StateDict | None = None) -> LatentMLP:
    """The official latent DDIM's MLP with its weights and the statistics of z_sem, in eval mode.

    What leaves no trace in the weights is taken to be as in the released models: SiLU everywhere, scales around 1
    (``net_latent_condition_bias`` 1), no ``residual``, ``last_act`` or ``time_last_act``.

    Args:
        source: a checkpoint of the official latent training (its ``ema_model`` is taken), a ``.safetensors`` file,
            or a state dict, with the MLP alone or beside an autoencoder.
        statistics: mean and standard deviation of the training set's z_sem: the official ``latent.pkl``, or a dict
            with ``conds_mean`` and ``conds_std``. None: those in ``source``; without any, they stay unknown.

    Raises:
        UnsafeInputError: a file that is damaged or that cannot be read without running code from it.
        ConfigError: a file that does not exist, no latent DDIM in it, one that we do not have, or wrong statistics.

    Example:
        >>> load_official_latent({"encoder.out.3.weight": torch.zeros(2, 2)})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: there is no latent DDIM's MLP in it; name a checkpoint of the latent training
    """
    weights = read_weights(source) if isinstance(source, (str, Path)) else source
    with named_after(source):
        network = _network(weights)
    known = read_weights(statistics) if isinstance(statistics, (str, Path)) else statistics
    if known is not None or {"conds_mean", "conds_std"} & weights.keys():
        with named_after(source if known is None else statistics):
            network.set_statistics(*_statistics(weights if known is None else known))
    return network.eval()


def _network(weights: StateDict) -> LatentMLP:
    layers = select_latent(weights)
    if layers is None:
        raise ConfigError("there is no latent DDIM's MLP in it; name a checkpoint of the latent training")
    layers = _each_once(layers)
    try:
        network = LatentMLP(**infer_latent_config(layers))
    except ConfigError:
        raise
    except (ValueError, IndexError) as error:  # the layout is read off shapes
        raise ConfigError("these are not the weights of an official latent DDIM: a tensor lacks axes") from error
    except KeyError as error:
        raise ConfigError(
            f"these are not the weights of an official latent DDIM: {error.args[0]} is missing"
        ) from error
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("z_")}
    network.load_state_dict(fitted(layers, _renaming(network.config["num_layers"]), own), strict=False)
    return network


def select_latent(weights: StateDict) -> dict[str, torch.Tensor] | None:
    """The latent DDIM's MLP in a state dict, under bare names: the averaged one if there is one; None without any."""
    for prefix in _PREFIXES:
        if prefix + _FIRST in weights:
            inner = {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}
            is_alone = not prefix.endswith("latent_net.")  # or with things that are none of the network's
            return {name: tensor for name, tensor in inner.items() if not is_alone or _OF_MLP.match(name)}
    return None


def infer_latent_config(weights: StateDict) -> dict[str, Any]:
    """The arguments of :class:`~monai_diffae.networks.LatentMLP` for official weights under bare names.

    Raises:
        ConfigError: a setting of the official code that our network has not.
        KeyError: a tensor is missing.
    """
    numbers = _layer_numbers(weights)
    hidden = weights[_FIRST].shape[0]
    z_channels, time_channels = weights["time_embed.0.weight"].shape
    if numbers != list(range(len(numbers))) or len(numbers) < 2:
        raise ConfigError(f"a latent DDIM of the layers {numbers} is none of the official code's; fetch the file again")
    refusals = {
        "a time embedding of other than two layers (net_latent_num_time_layers)": (
            "time_embed.2.weight" not in weights or "time_embed.4.weight" in weights
        ),
        "layers without a norm (net_latent_use_norm=False)": "layers.0.norm.weight" not in weights,
        "layers that are told no time": "layers.0.cond_layers.1.weight" not in weights,
    }
    for meaning, is_so in refusals.items():
        if is_so:
            raise _not_ours(meaning)
    if weights["layers.0.cond_layers.1.weight"].shape[0] == 2 * hidden:
        raise _not_ours("a scale and a shift from the time step (net_latent_condition_2x=True)")
    return {
        "z_channels": z_channels,
        "hidden_channels": hidden,
        "num_layers": len(numbers),
        "time_channels": time_channels,
        "skip_layers": [i for i in numbers if _has_skip(weights, i, hidden, z_channels)],
    }


def _has_skip(weights: StateDict, layer: int, hidden: int, z_channels: int) -> bool:
    width = weights[f"layers.{layer}.linear.weight"].shape[1]
    without = hidden if layer > 0 else z_channels
    if width not in (without, without + z_channels):
        raise ConfigError(
            f"layer {layer} of the latent DDIM takes {width} numbers: with z_sem of {z_channels} and a width of "
            f"{hidden} it must be {without} or {without + z_channels}"
        )
    return width > without


def _not_ours(meaning: str) -> ConfigError:
    return ConfigError(f"this latent DDIM cannot be taken over: {meaning}; use the code that it was trained with")


def _layer_numbers(weights: StateDict) -> list[int]:
    return sorted({int(name.split(".")[1]) for name in weights if re.match(r"layers\.\d+\.", name)})


def _each_once(weights: StateDict) -> dict[str, torch.Tensor]:
    """Without the second name of each time projection, and without the last layer's, which the code never uses."""
    last = max(_layer_numbers(weights))
    kept = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"layers\.(\d+)\.(linear_emb|cond_layers\.1)\.(weight|bias)", name)
        if match is None:
            kept[name] = tensor
        elif int(match.group(1)) < last:
            key = f"layers.{match.group(1)}.cond_layers.1.{match.group(3)}"
            if key in kept and not torch.equal(kept[key], tensor):
                raise ConfigError(f"{name} and {key} differ, and are one layer in the official code: damaged weights")
            kept[key] = tensor
    return kept


def _renaming(num_layers: int) -> Callable[[str], str]:
    """An official name -> ours."""

    def rename(name: str) -> str:
        name = re.sub(rf"^layers\.{num_layers - 1}\.linear\.", "head.", name)
        return name.replace(".cond_layers.1.", ".time_projection.")

    return rename


def _statistics(weights: StateDict) -> tuple[torch.Tensor, torch.Tensor]:
    lacks = [name for name in ("conds_mean", "conds_std") if not isinstance(weights.get(name), torch.Tensor)]
    if lacks:
        raise ConfigError(f"there is no tensor {lacks[0]} among the statistics of z_sem; name the official latent.pkl")
    return weights["conds_mean"], weights["conds_std"]
