"""A classifier or regressor of the user's: its file, what it gets, and what its outputs mean."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae.apps.settings import Numbers
from monai_diffae.bundle.code import refuse_code
from monai_diffae.data.fingerprints import file_checksum, json_digest
from monai_diffae.errors import ConfigError, check_installed, counted, one_line, quoted, shortened
from monai_diffae.lazy import bundles, torch

_SUFFIXES = {".onnx": None, ".pt2": "a pt2 file", ".ts": "a TorchScript file"}  # with what could run code
_LARGEST_LOGIT = 50.0

Activation = Literal["sigmoid", "softmax", "none"]


@Parameter(name="*", group=Group("Your model", sort_key=1))
@dataclass(frozen=True)
class ModelInterface:
    """What your model gets, and what its outputs mean."""

    activation: Activation | None = None
    """What turns outputs into scores: ``sigmoid`` or ``softmax`` for logits; ``none`` if the outputs are probabilities
    or values already. By default logits are assumed: ``sigmoid`` for one output, ``softmax`` for several."""
    output_index: Annotated[int, Ge(0)] | None = None
    """The output to explain, counted from 0; by default the only one, or the second of a softmax of two."""
    input_size: Sequence[Annotated[int, Ge(1)]] = ()
    """Size that images are resampled to for your model, e.g. ``224 224``; by default that of the bundle's images."""
    input_range: Numbers = ()
    """Black and white for your model, e.g. ``0,1``; by default the bundle's, usually ``-1,1``."""
    input_channels: Annotated[int, Ge(1)] | None = None
    """Channels for your model; a grey image is repeated. By default as many as the bundle's images have."""


@dataclass(frozen=True)
class UsersModel:
    """The user's model as a function of the bundle's images, which it gets one by one: many files allow one only."""

    name: str
    run: Callable[[torch.Tensor], Any]
    interface: ModelInterface
    model_range: tuple[float, float]

    def values(self, images: torch.Tensor) -> torch.Tensor:
        """What is to be moved, (N,): the logit of the chosen output, or the output itself without an activation."""
        outputs = self._outputs(images)
        index = self._index(outputs.shape[1])
        chosen = outputs[:, index]
        if self._activation(outputs) != "softmax":
            return chosen
        others = torch.cat([outputs[:, :index], outputs[:, index + 1 :]], dim=1)
        return chosen - others.logsumexp(dim=1)

    def checked(self, images: torch.Tensor) -> UsersModel:
        """The model with its activation; one that does not fit the images (N, C, *S) is refused."""
        images = torch.cat([images, sum(self.model_range) - images])  # few scans alone may have logits between 0 and 1
        buffers = list(self.run.buffers()) if isinstance(self.run, torch.nn.Module) else []
        before, outputs = [each.clone() for each in buffers], self._outputs(images)
        is_same = torch.allclose(outputs, self._outputs(images), rtol=1e-3, atol=1e-5, equal_nan=True)
        if not is_same or not all(map(torch.equal, before, buffers)):
            raise ConfigError(f"model: {self.name} is in training mode; call eval() before you export it")
        self._index(outputs.shape[1])
        activation, finite = self._activation(outputs), outputs[outputs.isfinite()]
        if activation == "softmax" and outputs.shape[1] == 1:
            raise ConfigError(f"activation: {self.name} has one output; use sigmoid or none")
        if self.interface.activation is None and len(finite) and bool(((finite >= 0) & (finite <= 1)).all()):
            raise ConfigError(
                f"activation: the outputs of {self.name} look like probabilities, not logits; set activation to none, "
                f"or to {activation} if they are logits"
            )
        if self.interface.activation is None and len(finite) and float(finite.abs().min()) > _LARGEST_LOGIT:
            raise ConfigError(
                f"activation: the outputs of {self.name} look like values, not logits ({float(finite[0]):.4g}); set "
                f"activation to none, with a value for to, or to {activation} if they are logits"
            )
        return replace(self, interface=replace(self.interface, activation=activation))

    def value_of(self, score: float) -> float:
        """The value of a score."""
        if self.interface.activation == "none":
            return score
        if not 0 < score < 1:
            raise ConfigError(
                f"to: {quoted(score)} is no probability between 0 and 1; with activation none, give a value"
            )
        return math.log(score / (1 - score))

    def score_of(self, value: float) -> float:
        """The score of a value."""
        is_score = self.interface.activation == "none"
        return value if is_score else 1 / (1 + math.exp(-min(max(value, -700.0), 700.0)))

    def _activation(self, outputs: torch.Tensor) -> Activation:
        return self.interface.activation or ("sigmoid" if outputs.shape[1] == 1 else "softmax")

    def _inputs(self, images: torch.Tensor) -> torch.Tensor:
        low, high = self.model_range
        black, white = self.interface.input_range or self.model_range
        inputs = (images - low) / (high - low) * (white - black) + black
        if self.interface.input_size:
            linear = {2: "bilinear", 3: "trilinear"}[images.ndim - 2]
            inputs = torch.nn.functional.interpolate(
                inputs, tuple(self.interface.input_size), mode=linear, antialias=linear == "bilinear"
            )
        channels = self.interface.input_channels or inputs.shape[1]
        return inputs if inputs.shape[1] == channels else inputs.repeat_interleave(channels, dim=1)

    def _outputs(self, images: torch.Tensor) -> torch.Tensor:
        """The outputs (N, K) for images (N, C, *S) in the bundle's range."""
        try:
            outputs = [self.run(image) for image in self._inputs(images).split(1)]
        except Exception as error:
            size, reason = " x ".join(map(str, images.shape[1:])), shortened(one_line(error), 200)
            raise ConfigError(
                f"{self.name}: fails with an image of {size} ({reason}); set input_size, or set "
                "input_channels, to what it was trained with"
            ) from error
        first = outputs[0]
        if not isinstance(first, torch.Tensor) or first.numel() != first.shape[-1:].numel():
            got = tuple(first.shape) if isinstance(first, torch.Tensor) else type(first).__name__
            raise ConfigError(f"{self.name}: gives {got} for one image; use a model that gives one row of outputs")
        return torch.stack([each.reshape(-1).float().to(images.device) for each in outputs])

    def _index(self, num_outputs: int) -> int:
        index, most = self.interface.output_index, 1 if self.interface.activation == "sigmoid" else 2
        if num_outputs > most if index is None else index >= num_outputs:
            raise ConfigError(f"output_index: {self.name} has {counted(num_outputs, 'output')}; choose one, from 0 on")
        return num_outputs - 1 if index is None else index


def check_file(path: Path) -> None:
    """Refuse a file that is no model, and without trust one that could run code."""
    if not path.is_file() or path.suffix not in _SUFFIXES:
        raise ConfigError(
            f"model: there is no {', '.join(_SUFFIXES)} file {path.name}; export the model as one of these"
        )
    if path.suffix == ".onnx":
        check_installed("onnxruntime", "export")
    code = _SUFFIXES[path.suffix]
    refuse_code([code] if code else [], path.name)


def checksum(path: Path) -> str:
    """SHA-256 of a model's files: the weights of ``a.onnx`` may be in ``a.onnx.data``."""
    files = sorted(path.parent.glob(f"{glob.escape(path.name)}*"))
    return json_digest([file_checksum(file) for file in files if file.is_file()])


def read_users_model(path: Path, interface: ModelInterface, trained: bundles.TrainedBundle) -> UsersModel:
    """Read a file that :func:`check_file` accepts, for the images of a bundle."""
    try:
        run = _run_of(path, trained.device)
    except Exception as error:
        reason = shortened(one_line(error), 200)
        raise ConfigError(f"model: {path.name} cannot be read ({reason}); export it again") from error
    for weight in run.parameters() if isinstance(run, torch.nn.Module) else ():
        weight.requires_grad_(False)
    return UsersModel(path.name, run, interface, trained.model_range)


def _run_of(path: Path, device: Any) -> Callable[[torch.Tensor], Any]:
    if path.suffix == ".ts":
        return cast("torch.nn.Module", torch.jit.load(path, map_location=device).eval())
    if path.suffix == ".pt2":
        from torch.export.passes import move_to_device_pass

        return move_to_device_pass(torch.export.load(path), device).module()
    import onnxruntime  # knows no operators of the file's own, so that no code is run

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) + len(outputs) > 2:
        raise ConfigError(f"it has {counted(len(inputs), 'input')} and {counted(len(outputs), 'output')}, not one each")
    return lambda image: torch.from_numpy(session.run(None, {inputs[0].name: image.detach().cpu().numpy()})[0])
