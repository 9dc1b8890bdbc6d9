"""A classifier or regressor of the user's: its file, what it gets, and what its outputs mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, cast

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae import bundle as bundles
from monai_diffae import transforms
from monai_diffae.apps.settings import Numbers
from monai_diffae.bundle.code import refuse_code
from monai_diffae.data.fingerprints import file_checksum, json_digest
from monai_diffae.errors import ConfigError, ScanError, check_installed, counted, one_line, quoted, shortened
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import torch


_SUFFIXES = {".onnx": None, ".pt2": "a pt2 file", ".ts": "a TorchScript file"}  # with what could run code

Activation = Literal["sigmoid", "softmax", "none"]


@Parameter(name="*", group=Group("Your model", sort_key=1))
@dataclass(frozen=True)
class ModelInterface:
    """What your model gets, and what its outputs mean."""

    activation: Activation | None = None
    """What turns outputs into scores: ``sigmoid`` or ``softmax`` for logits; ``none`` if the outputs are probabilities
    or values already. By default ``softmax`` for several outputs; for one output it must be given."""
    output_range: Numbers = ()
    """With ``none``: the lowest and highest score, e.g. ``0,1`` for probabilities or ``20,90`` for ages. The decision
    changes in the middle."""
    output_index: Annotated[int, Ge(0)] | None = None
    """The output to explain, counted from 0; by default the only one, or the second of a softmax of two."""
    input_from: Literal["scan", "bundle"] | None = None
    """What your model gets: the ``scan`` itself, or the image that the ``bundle`` makes of it; by default the scan if
    ``input_size`` is given."""
    input_size: Sequence[Annotated[int, Ge(1)]] = ()
    """Size that images are resampled to for your model, e.g. ``224 224``; by default none."""
    input_window: Numbers = ()
    """Intensities of the scan that are black and white, e.g. ``-160,240``; by default ``0,255`` for PNG and JPEG, and
    for other scans those of the bundle."""
    input_range: Numbers = ()
    """Black and white for your model, e.g. ``0,1``, the default with ``input_mean`` or ``input_std``; else the
    bundle's, usually ``-1,1``."""
    input_mean: Numbers = ()
    """Subtracted after ``input_range``: one number, or one for each of the channels that a grey image is repeated to,
    e.g. ``.485,.456,.406``."""
    input_std: Numbers = ()
    """Divides after that, one number or one per channel, e.g. ``.229,.224,.225``."""
    input_channels: Annotated[int, Ge(1)] | None = None
    """Channels for your model; a grey image is repeated. By default as many as the bundle's images have."""

    def __post_init__(self) -> None:
        for name in ("output_range", "input_window", "input_range"):
            values = getattr(self, name)
            if values and (len(values) != 2 or values[0] == values[1]):
                raise ConfigError(f"{name}: {quoted(tuple(values))} are not two different numbers")
        if bool(self.output_range) != (self.activation == "none"):
            raise ConfigError(
                "output_range: activation none needs it, e.g. 0,1 for probabilities; with another activation, omit it"
            )
        if 0 in self.input_std:
            raise ConfigError("input_std: 0 divides nothing; give standard deviations")
        if self.input_window and not self.takes_scan:
            raise ConfigError("input_window: the bundle scales its images itself; omit it, or set input_from to scan")

    @property
    def takes_scan(self) -> bool:
        """Whether the model gets the scan itself."""
        return self.input_from == "scan" or (self.input_from is None and bool(self.input_size))


@dataclass(frozen=True)
class UsersModel:
    """The user's model as a function of images, which it gets one by one: many files allow one only."""

    name: str
    run: Callable[[torch.Tensor], Any]
    interface: ModelInterface
    model_range: tuple[float, float]
    device: Any = "cpu"

    def values(self, images: torch.Tensor) -> torch.Tensor:
        """What is to be moved, (N,): the logit of the chosen output, or the output itself without an activation."""
        outputs = self._outputs(images)
        index = self._index(outputs.shape[1])
        chosen = outputs[:, index]
        if self._activation(outputs) != "softmax":
            return chosen
        others = torch.cat([outputs[:, :index], outputs[:, index + 1 :]], dim=1)
        return chosen - others.logsumexp(dim=1)

    def image(self, native: transforms.NativeSpace, difference: torch.Tensor | None = None) -> torch.Tensor:
        """What the model sees of a scan (1, C, *S) in the bundle's range, also with a decoded difference (C, *S)."""
        if not self.interface.takes_scan:
            image = native.image.as_tensor()
            return (image if difference is None else image + difference.to(image)).clamp(*self.model_range)[None]
        array = torch.from_numpy(native.scan.array)
        return self.scaled(native, array if difference is None else array + native.native_difference(difference))

    def scaled(self, native: transforms.NativeSpace, array: torch.Tensor) -> torch.Tensor:
        """An array (C, *S) in the scan's units as the model sees it, (1, C, *S) in the bundle's range."""
        low, high = self.model_range
        if window := self.interface.input_window or ((0, 255) if native.scan.suffix == ".png" else ()):
            array = (array - window[0]) / (window[1] - window[0]) * (high - low) + low
        else:
            array = native.scaled(array)
        return array.clamp(low, high)[None]

    def checked(self, images: Sequence[torch.Tensor]) -> UsersModel:
        """The model with its activation; one that does not fit the images, each (1, C, *S), is refused."""
        images = [*images, *(sum(self.model_range) - image for image in images)]  # few scans alone may look alike
        buffers = list(self.run.buffers()) if isinstance(self.run, torch.nn.Module) else []
        before, outputs = [each.clone() for each in buffers], torch.cat([self._outputs(each) for each in images])
        again = torch.cat([self._outputs(each) for each in images])
        is_same = torch.allclose(outputs, again, rtol=1e-3, atol=1e-5, equal_nan=True)
        if not is_same or not all(map(torch.equal, before, buffers)):
            raise ConfigError(f"model: {self.name} is in training mode; call eval() before you export it")
        self._index(outputs.shape[1])
        activation, finite = self._activation(outputs), outputs[outputs.isfinite()]
        if activation == "softmax" and outputs.shape[1] == 1:
            raise ConfigError(f"activation: {self.name} has one output; use sigmoid or none")
        if self.interface.activation is None and len(finite) and bool(((finite >= 0) & (finite <= 1)).all()):
            raise ConfigError(
                f"activation: the outputs of {self.name} look like probabilities, not logits; set activation to none "
                f"and output_range to 0,1, or activation to {activation} if they are logits"
            )
        return replace(self, interface=replace(self.interface, activation=activation))

    @property
    def middle(self) -> float:
        """The value at which the decision changes."""
        return sum(self.interface.output_range) / 2 if self.interface.activation == "none" else 0.0

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
        if self.interface.activation is None and outputs.shape[1] == 1:
            raise ConfigError(
                f"activation: {self.name} has one output; set activation to sigmoid if it is a logit, else to none, "
                "with its output_range, e.g. 0,1 for probabilities"
            )
        return self.interface.activation or "softmax"

    def inputs(self, images: torch.Tensor) -> torch.Tensor:
        """What the model gets for images (N, C, *S) in the bundle's range."""
        low, high = self.model_range
        mean, std = self.interface.input_mean, self.interface.input_std
        black, white = self.interface.input_range or ((0, 1) if mean or std else self.model_range)
        inputs = (images.to(self.device) - low) / (high - low) * (white - black) + black
        if self.interface.input_size:
            linear = {2: "bilinear", 3: "trilinear"}[images.ndim - 2]
            inputs = torch.nn.functional.interpolate(
                inputs, tuple(self.interface.input_size), mode=linear, antialias=linear == "bilinear"
            )
        channels = self.interface.input_channels or inputs.shape[1]
        inputs = inputs if inputs.shape[1] == channels else inputs.repeat_interleave(channels, dim=1)
        shape = 1, -1, *[1] * (inputs.ndim - 2)
        return (inputs - inputs.new_tensor(mean or [0.0]).view(shape)) / inputs.new_tensor(std or [1.0]).view(shape)

    def _outputs(self, images: torch.Tensor) -> torch.Tensor:
        """The outputs (N, K) for images (N, C, *S) in the bundle's range."""
        try:
            outputs = [self.run(image) for image in self.inputs(images).split(1)]
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


@dataclass(frozen=True)
class ScoredCase:
    """A case and the values that the user's model gives its scan, and images that are written for it."""

    opened: bundles.ModelCase
    users_model: UsersModel

    @property
    def native(self) -> transforms.NativeSpace:
        """The scan's own space."""
        return self.opened.native

    def value(self, difference: torch.Tensor | None = None) -> float:
        """The value of the scan, also with a decoded difference (C, *S)."""
        return self._finite(self.users_model.image(self.native, difference))

    def stored_value(self, array: npt.NDArray[np.float32]) -> float:
        """The value of an array (C, *native S) in the scan's units, after it was written to a file and read again."""
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"image{self.native.scan.suffix.removesuffix('.gz')}"
            transforms.write_native(file, array, self.native.scan)
            return self._finite(self.users_model.image(self.native.replaced_by(file)))

    def _finite(self, image: torch.Tensor) -> float:
        with torch.no_grad():
            value = float(self.users_model.values(image))
        if not math.isfinite(value):
            raise ScanError(
                f"{self.opened.id}: the output of {self.users_model.name} is not finite for the scan or a changed one"
            )
        return value


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
    """SHA-256 of a model's files: the weights of an ONNX file may be in others, which it names."""
    content = path.read_bytes() if path.suffix == ".onnx" else b""
    files = sorted(file for file in path.parent.iterdir() if file.is_file() and file.name.encode() in content)
    return json_digest([file_checksum(file) for file in (path, *files)])


def read_users_model(path: Path, interface: ModelInterface, trained: bundles.TrainedBundle) -> UsersModel:
    """Read a file that :func:`check_file` accepts, for the images of a bundle."""
    try:
        run = _run_of(path, trained.device)
    except Exception as error:
        reason = shortened(one_line(error), 200)
        raise ConfigError(f"model: {path.name} cannot be read ({reason}); export it again") from error
    for weight in run.parameters() if isinstance(run, torch.nn.Module) else ():
        weight.requires_grad_(False)
    return UsersModel(path.name, run, interface, trained.model_range, trained.device)


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
