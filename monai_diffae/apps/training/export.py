"""The command ``export``: a bundle's networks as files that run without this package."""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from monai_diffae import inferers, networks
from monai_diffae.apps.command import command
from monai_diffae.apps.record import run_once
from monai_diffae.apps.result import Result
from monai_diffae.bundle import layout
from monai_diffae.bundle.config import preprocessing_config
from monai_diffae.bundle.description import versions
from monai_diffae.bundle.model_file import checksum, read_description
from monai_diffae.data.atomic import write_atomic, write_json
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import ConfigError, check_installed, one_line, shortened
from monai_diffae.lazy import on_first_use

with on_first_use:
    import torch

    from monai_diffae.bundle import loading
    from monai_diffae.networks import network_parts

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest accepted difference between a file's output and the network's, as a share of the network's largest output."""
BATCHES = (1, 3)
"""Batch sizes at which they are compared."""

_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_Part: TypeAlias = "network_parts.NetworkPart"
_Run: TypeAlias = "Callable[..., torch.Tensor]"
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
    """
    for package in _ONNX_PACKAGES if format == "onnx" else ():
        check_installed(package, "export")
    if format == "ts":
        logger.warning("TorchScript will be removed from PyTorch and MONAI; use pt2 if your tool reads it")
    made_from = {"model": checksum(bundle), "format": format}
    parts, config, diffusion = _read_model(bundle)
    results = [out / f"{part.name}.{format}" for part in parts] + [out / layout.NETWORKS]

    def make() -> dict[str, Any]:
        files = [write_network(part, format, out) for part in parts]
        described = {"made_from": made_from | versions(), **_description(files, config), **diffusion}
        write_json(out / layout.NETWORKS, described)
        return {"networks": {file.path.name: _figures(file) for file in files}}

    figures, skipped = run_once("export", out, results, made_from, make, overwrite=overwrite)
    notes = [
        f"{name}: {each['bytes'] / 1e6:.1f} MB, largest difference {each['largest_difference']:.1e} of the largest "
        f"output{'' if each['size_is_free'] else ', for one image size only'}"
        for name, each in figures["networks"].items()
    ]
    return Result(out, figures, notes, skipped=skipped)


def _read_model(bundle: Path) -> tuple[list[_Part], Mapping[str, Any], dict[str, Any]]:
    """The networks of a bundle, its configuration, and how the denoiser is used."""
    if read_description(layout.model_file(bundle))["kind"] == "first_stage":
        first_stage = loading.load_first_stage(bundle)
        config = first_stage.description
        return network_parts.first_stage_parts(first_stage, config["image_size"]), config, {}
    trained = loading.load_bundle(bundle, "cpu")
    if not isinstance(trained.network, networks.DiffusionAutoencoder):
        raise ConfigError(
            f"network_def: {type(trained.network).__name__} cannot be exported; use a DiffusionAutoencoder"
        )
    parts = network_parts.autoencoder_parts(trained.network, trained.image_shape, trained.inferer.first_stage)
    return parts, trained.config, {"diffusion": _diffusion(trained.inferer)}


def _figures(file: NetworkFile) -> dict[str, Any]:
    return {"bytes": file.path.stat().st_size, "size_is_free": file.size_is_free, "largest_difference": file.difference}


def _description(files: Sequence[NetworkFile], config: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("in_channels", "image_size", "model_range", "spacing_mm", "encoder_key", "image_keys")
    images = {key: config[key] for key in keys if key in config}
    return {
        "networks": {file.path.name: _network(file) for file in files},
        "images": {**images, **_axes(len(files[0].part.size), config)},
        "preprocessing": preprocessing_config(config),
    }


def _axes(spatial_dims: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """The direction of each axis of an image, from its first index to its last."""
    if spatial_dims == 2:
        return {"axes": _AS_DISPLAYED, "slice_axes": _SLICES[config.get("slice_axis", "axial")]}
    transforms = json.dumps(config.get("preprocessing"))
    is_ras = "ToRASd" in transforms or ("Orientationd" in transforms and '"RAS"' in transforms)
    return {"axes": _RAS if is_ras else dict.fromkeys(_RAS, "as in the file")}


def _network(file: NetworkFile) -> dict[str, Any]:
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
        "inputs": inputs,
        "output": {part.output: output},
        "dtype": "float32",
        "sha256": file_checksum(file.path),
        **_figures(file),
    }


def _diffusion(inferer: inferers.DiffusionAutoencoderInferer) -> dict[str, Any]:
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
        "schedule": schedule.schedule,
        "prediction": schedule.prediction,
        "num_train_timesteps": total,
        "clip_range": inferer.clip_range,
        "x_t": "alpha[t] * x0 + sigma[t] * eps",
        "x0": x0,
        "eps": "(x_t - alpha[t] * x0) / sigma[t]",
        "alpha": [alpha for alpha, _ in levels],
        "sigma": [sigma for _, sigma in levels],
    }


# -- files of single networks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetworkFile:
    """A network's file, and how it compares with the network."""

    path: Path  # the file
    part: _Part  # the network
    size_is_free: bool  # whether it takes all sizes that the network takes, or only ``part.size``
    difference: float  # the largest difference between its output and the network's, as a share of the largest output
    output_shape: tuple[int, ...]  # shape of the output for an image of ``part.size``, without the batch axis


def write_network(part: _Part, format: str, folder: Path) -> NetworkFile:
    """Write a network to ``<name>.<format>``, load it, and compare both at two batch sizes and, if free, two sizes."""
    write, load = _FORMATS[format]
    path = folder / f"{part.name}.{format}"
    results: list[tuple[bool, float]] = []

    def write_and_compare(temporary: Path) -> None:
        is_free = write(part, temporary)
        difference = _largest_difference(part, load(temporary, part), is_free)
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"{path.name}: differs from the network by {difference:.1e} of its largest output, more than "
                f"{TOLERANCE:g}; it was removed; choose another format"
            )
        results.append((is_free, difference))

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about its own code; the command itself warns about TorchScript
        output_shape = tuple(part.module(*part.example(1, part.size)).shape[1:])
        write_atomic(path, write_and_compare)
    return NetworkFile(path, part, *results[0], output_shape)


def _largest_difference(part: _Part, loaded: _Run, size_is_free: bool) -> float:
    differences, largest = [0.0], 0.0
    for batch in BATCHES:
        for size in (part.size, part.larger_size) if size_is_free else (part.size,):
            inputs = part.example(batch, size)
            expected = part.module(*inputs)
            with _explained(part, f"for a batch of {batch} and images of {' x '.join(map(str, size))}"):
                differences.append(float((loaded(*inputs) - expected).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    return max(differences) / largest if largest else max(differences)


# -- pt2 and ONNX -----------------------------------------------------------------------------------------------------


def _exported(part: _Part) -> tuple[torch.export.ExportedProgram, bool]:
    """The network as a graph, and whether its image size is free; some networks take a single size."""
    axes = [(torch.export.Dim(axis, min=1), divisor) for axis, divisor in zip(part.axes, part.divisors, strict=True)]
    free = {i: axis if divisor == 1 else divisor * axis for i, (axis, divisor) in enumerate(axes, 2)}
    with suppress(Exception):
        return _graph(part, part.larger_size, free), True
    with _explained(part, "by torch.export"):
        return _graph(part, part.size, {}), False


def _graph(part: _Part, size: Sequence[int], free_axes: Mapping[int, Any]) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch", min=1)}
    shapes = ({**batch, **free_axes}, *[batch] * len(part.vectors))
    program = torch.export.export(part.module, part.example(2, size), dynamic_shapes=shapes, strict=False)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # it names folders of this machine, and the file is for others
    return program


def _write_pt2(part: _Part, path: Path) -> bool:
    program, size_is_free = _exported(part)
    torch.export.save(program, path)
    return size_is_free


def _write_onnx(part: _Part, path: Path) -> bool:
    program, size_is_free = _exported(part)
    with _explained(part, "to ONNX"):
        exported: Any = torch.onnx.export(
            program, (), input_names=part.inputs, output_names=[part.output], dynamo=True, verbose=False
        )
        for node in exported.model.graph.all_nodes():
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
        exported.save(path, external_data=False)
    return size_is_free


def _load_onnx(path: Path, part: _Part) -> _Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        named = {name: tensor.numpy() for name, tensor in zip(part.inputs, inputs, strict=True)}
        return torch.from_numpy(session.run(None, named)[0])

    return run


# -- TorchScript -------------------------------------------------------------------------------------------------------


def _write_ts(part: _Part, path: Path) -> bool:
    """Script the network; trace it if TorchScript does not understand its code, as MONAI's AutoencoderKL."""
    try:
        script = torch.jit.script(part.module)
    except Exception:
        with _explained(part, "to TorchScript"):
            script = torch.jit.trace(part.module, part.example(2, part.larger_size), check_trace=False)
    torch.jit.save(script, path)
    # without the source code, which is for error messages and names folders of this machine
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".debug_pkl")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return True


_FORMATS: dict[str, tuple[Callable[[_Part, Path], bool], Callable[[Path, _Part], _Run]]] = {
    "pt2": (_write_pt2, lambda path, _: torch.export.load(path).module()),
    "onnx": (_write_onnx, _load_onnx),
    "ts": (_write_ts, lambda path, _: torch.jit.load(path)),
}


@contextmanager
def _explained(part: _Part, how: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        network = type(getattr(part.module, "encoder", part.module)).__name__
        raise ConfigError(
            f"{part.name}: {network} cannot be exported {how} ({shortened(one_line(error), 60)}); choose another "
            "format, or use the bundle itself"
        ) from error
