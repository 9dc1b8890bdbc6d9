"""The command ``export``: a bundle's networks as files that run without this package."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result, run_once, versions
from monai_diffae.errors import ConfigError

if TYPE_CHECKING:
    from monai_diffae.apps.training.network_files import NetworkFile
    from monai_diffae.inferers import DiffusionAutoencoderInferer
    from monai_diffae.networks.network_parts import NetworkPart

logger = logging.getLogger(__name__)

_RAS = {"x": "left to right", "y": "posterior to anterior", "z": "inferior to superior"}
_AS_DISPLAYED = {"height": "top to bottom", "width": "left to right"}
_SLICES = {
    "axial": {"height": "anterior to posterior", "width": "right to left"},
    "coronal": {"height": "superior to inferior", "width": "right to left"},
    "sagittal": {"height": "superior to inferior", "width": "anterior to posterior"},
}


@command
def export(bundle: Path, out: Path, *, format: Literal["pt2", "onnx", "ts"] = "pt2", overwrite: bool = False) -> Result:
    """Write the networks of a trained bundle as files that run without this package.

    The files are ``encoder`` and ``denoiser``, with the format as suffix. A model in latent mode also has
    ``first_stage_encoder`` and ``first_stage_decoder``; a first stage (``autoencoder_kl_3d``) has only these two. They
    take any batch size, and any image size that the network takes. Each file is loaded again and compared with the
    network at two batch sizes and two image sizes. If it differs by more than 0.0001 of the largest output, it is
    removed, and the command fails. ``networks.json`` says how to use the files: shapes, axes, value range,
    spacing, preprocessing, noise levels and checksums.

    Args:
        bundle: Folder of a trained bundle.
        out: Folder for the files.
        format: ``pt2`` is read by ``torch.export.load``, ``onnx`` by ONNX Runtime, ``ts`` by ``torch.jit.load``. Use
            ``ts`` (TorchScript) only for tools that read nothing else, because PyTorch and MONAI will remove it.
        overwrite: Replace existing results.

    Returns:
        The folder, and ``networks``: for each file by its name ``bytes``, ``size_is_free``, and ``largest_difference``
        from the network as a share of its largest output.

    Raises:
        ConfigError: the bundle is not trained, or one of its networks cannot be exported to this format.
        MachineError: packages for ONNX are not installed, or the folder cannot be written.

    Example:
        >>> export("my_model", "exported")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_model: there is no models/model.safetensors; train the bundle first, ...
    """
    from monai_diffae.apps.training.network_files import check_format, write_network
    from monai_diffae.bundle import layout
    from monai_diffae.bundle.model_file import checksum
    from monai_diffae.data.atomic import write_json

    check_format(format)
    if format == "ts":
        logger.warning("TorchScript will be removed from PyTorch and MONAI; use pt2 if your tool reads it")
    made_from = {"model": checksum(bundle), "format": format}
    model = _read_model(bundle)
    results = [out / f"{part.name}.{format}" for part in model.parts] + [out / layout.NETWORKS]

    def make() -> dict[str, Any]:
        files = [write_network(part, format, out) for part in model.parts]
        write_json(out / layout.NETWORKS, {"made_from": made_from | versions()} | _description(model, files))
        return {"networks": {file.path.name: _figures(file) for file in files}}

    figures, skipped = run_once("export", out, results, made_from, make, overwrite=overwrite)
    notes = [
        f"{name}: {each['bytes'] / 1e6:.1f} MB, largest difference {each['largest_difference']:.1e} of the largest "
        f"output{'' if each['size_is_free'] else ', for one image size only'}"
        for name, each in figures["networks"].items()
    ]
    return Result(out, figures, notes, skipped=skipped)


@dataclass(frozen=True)
class _Model:
    """What is exported of a bundle: networks, configuration, and the inferer that decodes (None for a first stage)."""

    parts: list[NetworkPart]
    config: Mapping[str, Any]
    inferer: DiffusionAutoencoderInferer | None


def _read_model(bundle: Path) -> _Model:
    from monai_diffae.bundle import layout
    from monai_diffae.bundle.loading import load_bundle, load_first_stage
    from monai_diffae.bundle.model_file import read_description
    from monai_diffae.networks import DiffusionAutoencoder
    from monai_diffae.networks.network_parts import autoencoder_parts, first_stage_parts

    if read_description(layout.model_file(bundle))["kind"] == "first_stage":
        first_stage = load_first_stage(bundle)
        config = first_stage.description
        return _Model(first_stage_parts(first_stage, config["image_size"]), config, None)
    trained = load_bundle(bundle, "cpu")
    if not isinstance(trained.network, DiffusionAutoencoder):
        raise ConfigError(
            f"network_def: {type(trained.network).__name__} cannot be exported; use a DiffusionAutoencoder"
        )
    parts = autoencoder_parts(trained.network, trained.image_shape, trained.inferer.first_stage)
    return _Model(parts, trained.config, trained.inferer)


def _figures(file: NetworkFile) -> dict[str, Any]:
    return {
        "bytes": file.path.stat().st_size, "size_is_free": file.size_is_free, "largest_difference": file.difference
    }  # fmt: skip


def _description(model: _Model, files: Sequence[NetworkFile]) -> dict[str, Any]:
    from monai_diffae.bundle.config import preprocessing_config

    keys = ("in_channels", "image_size", "model_range", "spacing_mm", "encoder_key", "image_keys")
    description = {
        "networks": {file.path.name: _network(file) for file in files},
        "images": {key: model.config[key] for key in keys if key in model.config}
        | _axes(len(model.parts[0].size), model.config),
        "preprocessing": preprocessing_config(model.config),
    }
    return description if model.inferer is None else {**description, "diffusion": _diffusion(model.inferer)}


def _axes(spatial_dims: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """The direction of each axis of an image, from its first index to its last."""
    if spatial_dims == 2:
        return {"axes": _AS_DISPLAYED, "slice_axes": _SLICES[config.get("slice_axis", "axial")]}
    transforms = json.dumps(config.get("preprocessing"))
    is_ras = "ToRASd" in transforms or ("Orientationd" in transforms and '"RAS"' in transforms)
    return {"axes": _RAS if is_ras else dict.fromkeys(_RAS, "as in the file")}


def _network(file: NetworkFile) -> dict[str, Any]:
    from monai_diffae.data.fingerprints import file_checksum

    part, divisors = file.part, file.part.divisors
    output_size = file.output_shape[1:]

    def axes(multiples: list[int], size: tuple[int, ...]) -> list[str | int]:
        if not file.size_is_free:
            return list(size)
        return [axis if n == 1 else f"{n}*{axis}" for n, axis in zip(multiples, part.axes, strict=True)]

    multiples = [d * after // before for d, before, after in zip(divisors, part.size, output_size, strict=False)]
    output = ["batch", file.output_shape[0], *(axes(multiples, output_size) if output_size else [])]
    inputs = {part.image: ["batch", part.channels, *axes(list(divisors), part.size)]}
    inputs |= {name: ["batch", *shape] for name, shape in part.vectors.items()}
    return {
        "inputs": inputs, "output": {part.output: output}, "dtype": "float32",
        "sha256": file_checksum(file.path), **_figures(file),
    }  # fmt: skip


def _diffusion(inferer: DiffusionAutoencoderInferer) -> dict[str, Any]:
    """The noise levels, and how x0 and eps are computed from the denoiser's output."""
    from monai_diffae.diffusion.schedule import RECTIFIED_FLOW

    schedule = inferer.schedule
    if schedule.prediction == "eps":
        x0 = "(x_t - sigma[t] * prediction) / alpha[t]"
    elif schedule.prediction == "x0":
        x0 = "prediction"
    elif schedule.schedule == RECTIFIED_FLOW:
        x0 = "x_t - sigma[t] * prediction"
    else:
        x0 = "alpha[t] * x_t - sigma[t] * prediction"
    total = schedule.num_train_timesteps
    levels = [schedule.level(t) for t in range(total)]
    return {
        "schedule": schedule.schedule, "prediction": schedule.prediction, "num_train_timesteps": total,
        "clip_range": inferer.clip_range, "x_t": "alpha[t] * x0 + sigma[t] * eps", "x0": x0,
        "eps": "(x_t - alpha[t] * x0) / sigma[t]",
        "alpha": [alpha for alpha, _ in levels], "sigma": [sigma for _, sigma in levels],
    }  # fmt: skip
