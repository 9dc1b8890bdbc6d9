"""Trained models, loaded from their files: the autoencoder of a bundle, first stage, latent DDIM and fast decoder."""

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Transform
from torch import Tensor, nn

from monai_diffae.bundle.code import check_code, no_such_key
from monai_diffae.bundle.config import build, check_dimensions, check_image_size, check_rules, find_device
from monai_diffae.bundle.description import describe, resolved
from monai_diffae.bundle.folders import shipped_bundle
from monai_diffae.bundle.layout import (
    CONFIGS,
    FAST_MODEL,
    FIRST_STAGE_MODEL,
    LATENT_MODEL,
    MODEL,
    TRAIN,
    model_file,
    models_folder,
)
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.bundle.model_file import (
    FIRST_STAGE,
    ModelFile,
    checksum,
    model_parser,
    read_model,
    refuse_other_weights,
)
from monai_diffae.bundle.parser import Parser, read_config, set_values
from monai_diffae.data.fingerprints import digest
from monai_diffae.diffusion import Solver
from monai_diffae.errors import ConfigError, DiffAEError, quoted
from monai_diffae.inferers import DiffusionAutoencoderInferer, LatentInferer
from monai_diffae.inferers.autoencoding import FastDecoder
from monai_diffae.latents.statistics import LatentStatistics
from monai_diffae.networks import FirstStage, LatentMLP
from monai_diffae.policies import PathLike

logger = logging.getLogger(__name__)

_COHORT_KEYS = ("columns", "patient_pattern")  # no part of a description, as they can name patients
_DISTILL, _TRAIN_LATENT = "train it again with monai-diffae distill", "monai-diffae train-latent"


def load_bundle(
    bundle: PathLike, device: str | torch.device | None = None, overrides: Mapping[str, Any] | None = None
) -> TrainedBundle:
    """Load a trained bundle.

    Everything is read from one file, ``models/model.safetensors``, whose header describes the model.

    Args:
        bundle: the bundle's folder, or the file itself.
        device: where to compute; None: the GPU if there is one.
        overrides: values for keys of the model's description, such as ``{"inferer#steps": 20}``.

    Raises:
        ConfigError: the bundle is not trained, its weights are of another network, an override names an unknown key,
            or a component refuses a value.
        ScanError: the file is damaged.
        UnsafeInputError: the model names something to build that can do more than compute, and is not trusted
            (:func:`trusting`).
        MachineError: the device does not exist.
    """
    device = find_device(device)
    root = Path(bundle)
    path = model_file(root)
    model = read_model(path, "autoencoder")
    refuse_other_weights(root)
    config = _with_overrides(model.description, overrides or {}, f"{root.name}: {MODEL}")
    parser = model_parser(config)
    if "first_stage" in config:
        parser["first_stage"] = first_stage_of(model).to(device)
    network = build(parser, "network_def", nn.Module)
    model.load_into(network)
    network.to(device).eval().requires_grad_(False)
    inferer, preprocessing = _companions(parser, device)
    fast_sha256 = None
    if inferer.settings.decoder == "fast":
        fast_decoder, fast_sha256 = load_fast_decoder(models_folder(root), network, model.sha256, device)
        inferer = inferer.replace(fast_decoder=fast_decoder)
    return TrainedBundle(root, network, inferer, preprocessing, config, model.sha256, device, fast_sha256)


def load_untrained(
    bundle: PathLike,
    device: str | torch.device | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> TrainedBundle:
    """Load a bundle, or a shipped one by its name, with random weights; ``sha256`` is that of description and seed."""
    device = find_device(device)
    root = Path(bundle) if Path(bundle).exists() else shipped_bundle(str(bundle))
    try:
        path = model_file(root)
    except ConfigError:
        parser = read_config(root / CONFIGS / TRAIN)
        check_code(overrides or {}, "overrides", places=False)
        set_values(parser, {**(overrides or {}), "bundle_root": str(root)}, "the configuration", f"configs/{TRAIN}")
        check_rules(dict(parser.get()))
        check_dimensions(dict(parser.get()))
        parser.parse()
        config = describe(parser)
    else:
        description = read_model(path, "autoencoder").description
        config = _with_overrides(description, overrides or {}, f"{root.name}: {MODEL}")
        check_dimensions(config)
    network = untrained_network(config, seed).to(device)
    check_image_size(network, config["image_size"])
    companions = _companions(model_parser(config), device)
    text = json.dumps([seed, config], sort_keys=True, default=str)
    return TrainedBundle(root, network, *companions, config, digest(text), device)


def untrained_network(config: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The network that a description describes, with random weights, in evaluation mode on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(model_parser(config), "network_def", nn.Module)
    return network.eval().requires_grad_(False)


def _with_overrides(description: Mapping[str, Any], overrides: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A model's description with other values; ``name`` is that of its file in errors."""
    check_code(overrides, "overrides", places=False)
    what, command = "the model's description", f"monai-diffae info {name.partition(':')[0]}"
    frozen = set(description.get("frozen", ()))
    for key, value in overrides.items():
        top = str(key).partition("#")[0]
        if top == key and key not in {*description, *_COHORT_KEYS}:  # components may get new arguments
            raise ConfigError(no_such_key(key, what, command))
        if top in frozen and value != description.get(key):
            raise ConfigError(f"{key}: the training computed other values from it, so it is fixed; train another model")
    parser = Parser(deepcopy(dict(description)))
    set_values(parser, overrides, what, command)
    config = dict(parser.get())
    config.pop("_meta_", None)
    check_rules(config)
    return config


def preprocessing_of(description: Mapping[str, Any]) -> Transform:
    """The preprocessing that a description describes."""
    transform: Transform = build(model_parser(description), "preprocessing", Transform)  # type: ignore[type-abstract]
    return transform


def _companions(parser: Parser, device: torch.device) -> tuple[DiffusionAutoencoderInferer, Transform]:
    """The inferer and the preprocessing that a description describes, for a network on a device."""
    inferer = build(parser, "inferer", DiffusionAutoencoderInferer)
    inferer.schedule.to(device)
    return inferer, build(parser, "preprocessing", Transform)  # type: ignore[type-abstract]


# -- decoding ----------------------------------------------------------------------------------------------------------


def inferer_overrides(overrides: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """Overrides of a bundle's configuration, extended by settings of its inferer, of which None means the bundle's."""
    if (settings.get("decoder") or overrides.get("inferer#decoder")) == "fast":
        unused = next((name for name in ("steps", "solver", "spacing") if settings.get(name) is not None), None)
        if unused is not None:
            raise ConfigError(f"{unused}: has no effect on the fast decoder; omit it, or choose decoder exact")
    # If ``steps`` is given, it also sets the number of inversion steps, instead of the bundle's.
    default = {} if settings.get("steps") is None else {"inferer#invert_steps": None}
    given = {f"inferer#{key}": value for key, value in settings.items() if value is not None}
    return {**default, **overrides, **given}


def inferer_settings(inferer: DiffusionAutoencoderInferer) -> dict[str, Any]:
    """All settings of an inferer that change its results, as plain values, for the records of results."""
    # the batch size does not change the result, and without ``clip``, ``clip_range`` is None
    settings = {name: value for name, value in vars(inferer.settings).items() if name not in ("batch_size", "clip")}
    return {
        **settings,
        "steps": inferer.steps,
        "invert_steps": inferer.invert_steps,
        "solver": _solver_name(inferer.solver),
        "spacing": inferer.settings.spacing or inferer.schedule.spacing,
        "clip_range": None if inferer.clip_range is None else list(inferer.clip_range),
    }


def _solver_name(solver: Solver | functools.partial[Tensor]) -> str:
    """``unipc``, or ``unipc(order=2)`` for a functools.partial; a configuration can name any callable."""
    if isinstance(solver, functools.partial):
        options = ", ".join(f"{name}={value}" for name, value in solver.keywords.items())
        return f"{_solver_name(solver.func)}({options})"
    return str(getattr(solver, "__name__", type(solver).__name__))


# -- first stage -------------------------------------------------------------------------------------------------------


def load_first_stage(bundle: PathLike, device: str | torch.device = "cpu", renew: bool = False) -> FirstStage:
    """Load a trained first stage, frozen and in evaluation mode.

    Args:
        bundle: its bundle, or the file of a model: its own, or that of a model on its latents. In a bundle that
            ``init`` made with a first stage and that is not trained yet, it is that one.
        device: where to compute.
        renew: take the one of ``init`` also if the bundle is trained.

    Raises:
        ConfigError: there is no trained first stage.
        ScanError: its weights cannot be read.
    """
    given = models_folder(bundle) / FIRST_STAGE_MODEL
    is_given = given.is_file() and (renew or not (given.parent / MODEL).is_file())
    model = read_model(given if is_given else model_file(bundle))
    if model.kind != "first_stage" and "first_stage" not in model.description:
        raise ConfigError(
            f"{Path(bundle).name}: is no first stage but {quoted(model.kind)}; use a trained autoencoder_kl_3d"
        )
    return first_stage_of(model).to(device)


def first_stage_of(model: ModelFile) -> FirstStage:
    """The first stage in the file of a model: the model itself, or the one on whose latents it works."""
    is_own = model.kind == "first_stage"
    definition = resolved(model.description, "network_def" if is_own else "first_stage")
    network = build(Parser({"network_def": definition}), "network_def", FirstStage)
    model.load_into(network, "" if is_own else FIRST_STAGE)
    if network.latent_std.isnan() and model.name != FIRST_STAGE_MODEL:
        raise ConfigError(f"{model.name}: the scale of its latents is not measured yet; train to its first validation")
    network.description = {**model.description, "network_def": definition, "weights_sha256": weights_sha256(network)}
    return network.eval().requires_grad_(False)


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 of the names and values of a network's weights."""
    weights = sorted(network.state_dict().items())
    return digest(*(part for name, tensor in weights for part in (name, tensor.cpu().numpy())))


def check_latent_image_size(first_stage: FirstStage, network: nn.Module, image_size: Sequence[int]) -> None:
    """Check that the first stage, and then the network on its latents, can halve images of this size."""
    check_image_size(network, image_size, first_stage)


# -- latent DDIM -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedLatent:
    """A trained latent DDIM."""

    network: LatentMLP  #: in evaluation mode, with the averaged weights and the statistics of its training set
    inferer: LatentInferer  #: samples z_sem from the network
    sha256: str = ""  #: SHA-256 of its file


def load_latent(bundle: PathLike, device: str | torch.device | None = None) -> TrainedLatent:
    """Load the latent DDIM of a trained bundle from ``models/latent_model.safetensors``.

    Args:
        bundle: the bundle's folder, or the file of its model.
        device: where to compute; None: the GPU if there is one.

    Raises:
        ConfigError: there is no latent DDIM, it belongs to another autoencoder, or the statistics of z_sem are unknown.
        ScanError: its weights cannot be read.
    """
    model = _read_latent(bundle)
    parser = model_parser(model.description)
    device = find_device(device)
    network = build(parser, "latent_network_def", LatentMLP)
    model.load_into(network)
    if network.z_std.isnan().any():
        raise ConfigError(f"{model.name}: the mean and std of z_sem are unknown; import it with latent_statistics")
    network.to(device).eval().requires_grad_(False)
    inferer = build(parser, "latent_inferer", LatentInferer)
    inferer.schedule.to(device)
    return TrainedLatent(network, inferer, model.sha256)


def latent_statistics(bundle: PathLike) -> LatentStatistics | None:
    """Mean and standard deviation of z_sem over the training of a bundle's latent DDIM; None without a usable one."""
    if not (models_folder(bundle) / LATENT_MODEL).is_file():
        return None
    try:
        tensors = _read_latent(bundle).tensors
        return LatentStatistics(tensors["z_mean"].numpy(), tensors["z_std"].numpy())
    except (DiffAEError, KeyError, TypeError, ValueError) as error:
        logger.debug("the statistics of z_sem are not known: %s", error)
        return None


def _read_latent(bundle: PathLike) -> ModelFile:
    path = models_folder(bundle) / LATENT_MODEL
    if not path.is_file():
        raise ConfigError(f"{Path(bundle).name}: there is no latent model; train it with {_TRAIN_LATENT}")
    model = read_model(path, "latent")
    if model.description.get("autoencoder_sha256") != checksum(bundle):
        name = Path(bundle).name
        raise ConfigError(f"{name}: the latent model belongs to another autoencoder; train it again: {_TRAIN_LATENT}")
    return model


# -- fast decoder ------------------------------------------------------------------------------------------------------


def describe_fast_decoder(levels: Sequence[int], autoencoder_sha256: str) -> dict[str, Any]:
    """The description of a fast decoder: the levels of its steps, and the autoencoder that it belongs to."""
    return {"levels": list(levels), "autoencoder_sha256": autoencoder_sha256}


def load_fast_decoder(
    models: Path, network: nn.Module, autoencoder_sha256: str, device: torch.device | str
) -> tuple[FastDecoder, str]:
    """Load the fast decoder of an autoencoder, whose ``unet`` has its shape, and the SHA-256 of its file."""
    path = models / FAST_MODEL
    if not path.is_file():
        raise ConfigError("decoder: there is no fast decoder in this bundle; train it with monai-diffae distill")
    model = read_model(path, "fast")
    if model.description.get("autoencoder_sha256") != autoencoder_sha256:
        raise ConfigError(f"{FAST_MODEL}: belongs to another autoencoder; {_DISTILL}")
    unet: nn.Module = deepcopy(network.unet)  # type: ignore[assignment]
    model.load_into(unet)
    return FastDecoder(unet.to(device).eval().requires_grad_(False), tuple(model.description["levels"])), model.sha256
