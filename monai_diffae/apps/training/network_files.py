"""Files of single networks that run without this package: PyTorch's pt2, ONNX and TorchScript."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from monai_diffae.data.atomic import write_atomic
from monai_diffae.errors import ConfigError, MachineError, one_line, shortened
from monai_diffae.networks.network_parts import NetworkPart

if TYPE_CHECKING:
    from torch.export import ExportedProgram

TOLERANCE = 1e-4
"""Largest accepted difference between a file's output and the network's, as a share of the network's largest output."""
BATCHES = (1, 3)
"""Batch sizes at which they are compared."""

_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_Run = Callable[..., Tensor]


@dataclass(frozen=True)
class NetworkFile:
    """A network's file, and how it compares with the network."""

    path: Path  # the file
    part: NetworkPart  # the network
    size_is_free: bool  # whether it takes all sizes that the network takes, or only ``part.size``
    difference: float  # the largest difference between its output and the network's, as a share of the largest output
    output_shape: tuple[int, ...]  # shape of the output for an image of ``part.size``, without the batch axis


def check_format(format: str) -> None:
    """Check that the packages of a format are installed."""
    missing = [name for name in _ONNX_PACKAGES if format == "onnx" and find_spec(name) is None]
    if missing:
        raise MachineError(f"format onnx: {missing[0]} is not installed; run pip install 'monai-diffae[export]'")


def write_network(part: NetworkPart, format: str, folder: Path) -> NetworkFile:
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

    with _quiet(), torch.no_grad():
        output_shape = tuple(part.module(*part.example(1, part.size)).shape[1:])
        write_atomic(path, write_and_compare)
    return NetworkFile(path, part, *results[0], output_shape)


def _largest_difference(part: NetworkPart, loaded: _Run, size_is_free: bool) -> float:
    differences, largest = [0.0], 0.0
    for batch in BATCHES:
        for size in (part.size, part.larger_size) if size_is_free else (part.size,):
            inputs = part.example(batch, size)
            expected = part.module(*inputs)
            try:
                output = loaded(*inputs)
            except Exception as error:
                shape = " x ".join(map(str, size))
                raise _export_error(part, error, f"for a batch of {batch} and images of {shape}") from error
            if output.shape != expected.shape:
                raise ConfigError(
                    f"{part.name}: the file gives {tuple(output.shape)} instead of {tuple(expected.shape)}; "
                    "choose another format"
                )
            differences.append(float((output - expected).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    return max(differences) / largest if largest else max(differences)


# -- pt2 and ONNX ------------------------------------------------------------------------------------------------------


def _exported(part: NetworkPart) -> tuple[ExportedProgram, bool]:
    """The network as a graph, and whether its image size is free; some networks take a single size."""
    free = {2 + i: _multiple(*axis) for i, axis in enumerate(zip(part.axes, part.divisors, strict=True))}
    try:
        return _graph(part, part.larger_size, free), True
    except Exception:
        try:
            return _graph(part, part.size, {}), False
        except Exception as error:
            raise _export_error(part, error, "by torch.export") from error


def _graph(part: NetworkPart, size: Sequence[int], free_axes: Mapping[int, Any]) -> ExportedProgram:
    batch = {0: torch.export.Dim("batch", min=1)}
    shapes = ({**batch, **free_axes}, *[batch] * len(part.vectors))
    program = torch.export.export(part.module, part.example(2, size), dynamic_shapes=shapes, strict=False)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # it names folders of this machine, and the file is for others
    return program


def _multiple(axis: str, divisor: int) -> Any:
    """A free size that is a multiple of ``divisor``."""
    dimension = torch.export.Dim(axis, min=1)
    return dimension if divisor == 1 else divisor * dimension


def _write_pt2(part: NetworkPart, path: Path) -> bool:
    program, size_is_free = _exported(part)
    torch.export.save(program, path)
    return size_is_free


def _load_pt2(path: Path, _: NetworkPart) -> _Run:
    run: _Run = torch.export.load(path).module()
    return run


def _write_onnx(part: NetworkPart, path: Path) -> bool:
    program, size_is_free = _exported(part)
    try:
        exported: Any = torch.onnx.export(
            program, (), input_names=part.inputs, output_names=[part.output], dynamo=True, verbose=False
        )
        for node in exported.model.graph.all_nodes():
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
        exported.save(path, external_data=False)
    except Exception as error:
        raise _export_error(part, error, "to ONNX") from error
    return size_is_free


def _load_onnx(path: Path, part: NetworkPart) -> _Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        named = {name: tensor.numpy() for name, tensor in zip(part.inputs, inputs, strict=True)}
        return torch.from_numpy(session.run(None, named)[0])

    return run


# -- TorchScript -------------------------------------------------------------------------------------------------------


def _write_ts(part: NetworkPart, path: Path) -> bool:
    """Script the network; trace it if TorchScript does not understand its code, as MONAI's AutoencoderKL."""
    try:
        script = torch.jit.script(part.module)
    except Exception:
        try:
            script = torch.jit.trace(part.module, part.example(2, part.larger_size), check_trace=False)
        except Exception as error:
            raise _export_error(part, error, "to TorchScript") from error
    torch.jit.save(script, path)
    _remove_sources(path)
    return True


def _remove_sources(path: Path) -> None:
    """Remove the source code in a TorchScript file, which is for error messages and names folders of this machine."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".debug_pkl")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _load_ts(path: Path, _: NetworkPart) -> _Run:
    run: _Run = torch.jit.load(path)
    return run


_FORMATS: dict[str, tuple[Callable[[NetworkPart, Path], bool], Callable[[Path, NetworkPart], _Run]]] = {
    "pt2": (_write_pt2, _load_pt2), "onnx": (_write_onnx, _load_onnx), "ts": (_write_ts, _load_ts)
}  # fmt: skip


def _export_error(part: NetworkPart, error: Exception, how: str) -> ConfigError:
    network = type(getattr(part.module, "encoder", part.module)).__name__
    return ConfigError(
        f"{part.name}: {network} cannot be exported {how} ({shortened(one_line(error), 60)}); choose another format, "
        "or use the bundle itself"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide torch's warnings about its own code; the command itself warns about TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
