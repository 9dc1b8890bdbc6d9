"""Converts the latent DDIM of the official Diff-AE code to this package's network."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_diffae.errors import ConfigError
from monai_diffae.networks.latent_mlp import LatentMLP
from monai_diffae.official.checkpoint_files import named_after, read_checkpoint, read_weights
from monai_diffae.official.weights import OfficialSettings, StateDict, derived_from_shapes, fitted, official_settings

# prefixes of the MLP's names, in order of preference
_PREFIXES = ("ema_model.latent_net.", "model.latent_net.", "latent_net.", "ema_model.", "model.", "")
_FIRST = "layers.0.linear.weight"
_MLP_NAME = re.compile(r"(layers|time_embed)\.")


def load_official_latent(
    source: str | Path | StateDict,
    statistics: str | Path | StateDict | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
) -> LatentMLP:
    """Load the official latent DDIM's MLP and the statistics of z_sem, in evaluation mode.

    Settings that leave no trace in the weights are read as in :func:`load_official`. Those that a checkpoint does not
    hold either are assumed to be those of the released models: SiLU everywhere, no ``residual`` or ``last_act``.

    Args:
        source: a checkpoint of the official latent training (its ``ema_model`` is used), a ``.safetensors`` file, or
            a state dict, with the MLP alone or beside an autoencoder.
        statistics: mean and standard deviation of the training set's z_sem: the official ``latent.pkl``, or a dict
            with ``conds_mean`` and ``conds_std``. None: those in ``source``; if it has none, they remain unknown.
        hyper_parameters: values of the official ``TrainConfig`` by their names, if ``source`` has none.

    Raises:
        UnsafeInputError: a file is damaged, or reading it could run code.
        ConfigError: a file does not exist or has no latent DDIM, this package has no such network, or the statistics
            cannot be used.

    Example:
        >>> network = load_official_latent("last.ckpt")  # doctest: +SKIP
    """
    weights, own = read_checkpoint(source)
    with named_after(source):
        settings, _ = official_settings(own, hyper_parameters)
        network = _network(weights, settings)
    if not settings.latent_znormalize:
        network.set_statistics(torch.zeros(network.z_channels), torch.ones(network.z_channels))
        return network.eval()
    given = None if statistics is None else read_weights(statistics)
    if given is not None or {"conds_mean", "conds_std"} & weights.keys():
        with named_after(source if given is None else statistics):
            network.set_statistics(*_statistics(weights if given is None else given))
    return network.eval()


class LinearHead(NamedTuple):
    """A classifier of the official code: the logits of K classes are ``weight @ ((z_sem - mean) / std) + bias``."""

    weight: Tensor  # [K, D]
    bias: Tensor  # [K]
    mean: Tensor  # [D]
    std: Tensor  # [D]


def load_official_head(source: str | Path) -> LinearHead:
    """Load the linear classifier that the official code trains on normalised z_sem (section 4.2 of the paper).

    A checkpoint without ``conds_mean`` is of a classifier of z_sem as it is (``manipulate_znormalize`` off).

    Args:
        source: checkpoint of the official classifier's training; as there, ``classifier`` is used, not its average.

    Raises:
        UnsafeInputError: a file is damaged, or reading it could run code.
        ConfigError: there is no linear classifier in it, or its shapes differ.
    """
    weights = read_weights(source)
    with named_after(source):
        weight, bias = weights.get("classifier.weight"), weights.get("classifier.bias")
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ConfigError(
                "there is no linear classifier in it (classifier.weight); only such ones become directions"
            )
        z_channels = weight.shape[1]
        mean, std = torch.zeros(z_channels), torch.ones(z_channels)
        if "conds_mean" in weights:
            mean, std = (each.flatten() for each in _statistics(weights))
        if not mean.shape == std.shape == (z_channels,):
            raise ConfigError(f"the classifier takes {z_channels} numbers, and the statistics have {len(mean)}")
    return LinearHead(weight.float(), bias.float(), mean.float(), std.float())


def _network(weights: StateDict, settings: OfficialSettings) -> LatentMLP:
    layers = select_latent(weights)
    if layers is None:
        raise ConfigError("there is no latent DDIM's MLP in it; choose a checkpoint of the latent training")
    layers = _without_duplicates(layers)
    with derived_from_shapes("latent DDIM"):
        network = LatentMLP(
            **infer_latent_config(layers),
            scale_bias=settings.net_latent_condition_bias,
            time_activation=settings.net_latent_time_last_act,
        )
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("z_")}
    network.load_state_dict(fitted(layers, _renaming(network.config["num_layers"]), own), strict=False)
    return network


def select_latent(weights: StateDict) -> dict[str, Tensor] | None:
    """The latent DDIM's MLP in a state dict, without prefixes: the averaged one if possible; None if there is none."""
    for prefix in _PREFIXES:
        if prefix + _FIRST in weights:
            inner = {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}
            is_alone = not prefix.endswith("latent_net.")  # else the prefix may have other tensors, too
            return {name: tensor for name, tensor in inner.items() if not is_alone or _MLP_NAME.match(name)}
    return None


def infer_latent_config(weights: StateDict) -> dict[str, Any]:
    """The arguments of :class:`~monai_diffae.networks.LatentMLP` for official weights with names without prefix."""
    numbers = _layer_numbers(weights)
    hidden = weights[_FIRST].shape[0]
    z_channels, time_channels = weights["time_embed.0.weight"].shape
    if numbers != list(range(len(numbers))) or len(numbers) < 2:
        raise ConfigError(f"the official code has no latent DDIM with the layers {numbers}; download the file again")
    time_projection = weights.get("layers.0.cond_layers.1.weight")
    unsupported = {
        "a time embedding that does not have two layers (net_latent_num_time_layers)": (
            "time_embed.2.weight" not in weights or "time_embed.4.weight" in weights
        ),
        "layers without a norm (net_latent_use_norm=False)": "layers.0.norm.weight" not in weights,
        "layers without the time step as input": time_projection is None,
        "a scale and a shift from the time step (net_latent_condition_2x=True)": (
            time_projection is not None and time_projection.shape[0] == 2 * hidden
        ),
    }
    if meaning := next((meaning for meaning, is_present in unsupported.items() if is_present), None):
        raise ConfigError(f"this latent DDIM cannot be imported: {meaning}; use the code that it was trained with")
    return {
        "z_channels": z_channels,
        "hidden_channels": hidden,
        "num_layers": len(numbers),
        "time_channels": time_channels,
        "skip_layers": [
            i for i in numbers if weights[f"layers.{i}.linear.weight"].shape[1] > (hidden if i else z_channels)
        ],
    }


def _layer_numbers(weights: StateDict) -> list[int]:
    return sorted({int(name.split(".")[1]) for name in weights if re.match(r"layers\.\d+\.", name)})


def _without_duplicates(weights: StateDict) -> dict[str, Tensor]:
    """The weights with one name per time projection, and without that of the last layer, which is not used."""
    last = max(_layer_numbers(weights))
    kept = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"layers\.(\d+)\.(linear_emb|cond_layers\.1)\.(weight|bias)", name)
        if match is None:
            kept[name] = tensor
        elif int(match.group(1)) < last:
            key = f"layers.{match.group(1)}.cond_layers.1.{match.group(3)}"
            kept[key] = tensor
    return kept


def _renaming(num_layers: int) -> Callable[[str], str]:
    """A function from an official name to this package's."""

    def rename(name: str) -> str:
        name = re.sub(rf"^layers\.{num_layers - 1}\.linear\.", "head.", name)
        return name.replace(".cond_layers.1.", ".time_projection.")

    return rename


def _statistics(weights: StateDict) -> tuple[Tensor, Tensor]:
    missing = [name for name in ("conds_mean", "conds_std") if not isinstance(weights.get(name), Tensor)]
    if missing:
        raise ConfigError(f"there is no tensor {missing[0]} in the statistics of z_sem; give the official latent.pkl")
    return weights["conds_mean"], weights["conds_std"]
