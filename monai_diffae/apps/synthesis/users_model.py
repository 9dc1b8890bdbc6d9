"""A classifier or regressor of the user's: its file, what it gets, and what its outputs mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae.apps.settings import Numbers
from monai_diffae.errors import ConfigError, MachineError, counted, one_line, quoted, shortened
from monai_diffae.lazy import np, torch

if TYPE_CHECKING:
    from torch import Tensor

    from monai_diffae.bundle import TrainedBundle

_WITH_CODE = {".pt2": "a pt2 file", ".pt": "a TorchScript file", ".ts": "a TorchScript file"}
"""``torch.export.load`` evaluates texts of the file and unpickles parts of it; TorchScript can write files."""


@Parameter(name="*", group=Group("Your model", sort_key=1))
@dataclass(frozen=True)
class ModelInterface:
    """What your model gets, and what its outputs mean."""

    activation: Literal["sigmoid", "softmax", "none"] | None = None
    """What turns outputs into scores: ``sigmoid`` or ``softmax`` for logits; ``none`` if the outputs are probabilities
    or values already. By default logits are assumed: ``sigmoid`` for one output, ``softmax`` for several."""
    output_index: Annotated[int, Ge(0)] | None = None
    """The output to explain, counted from 0; by default the only one, or the second of two."""
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
    run: Callable[[Tensor], Any]
    interface: ModelInterface
    model_range: tuple[float, float]

    def outputs(self, images: Tensor) -> Tensor:
        """The outputs (N, K) for images (N, C, *S) in the model's range."""
        return torch.stack([self._outputs(image) for image in self._inputs(images).split(1)])

    def values(self, images: Tensor) -> Tensor:
        """What is to be moved, (N,): the logit of the chosen output, or the output itself without an activation."""
        outputs = self.outputs(images)
        index = self._index(outputs.shape[1])
        chosen = outputs[:, index]
        if self.activation(outputs.shape[1]) != "softmax":
            return chosen
        others = torch.cat([outputs[:, :index], outputs[:, index + 1 :]], dim=1)
        return chosen - others.logsumexp(dim=1)

    def activation(self, num_outputs: int) -> str:
        """How a value becomes a score."""
        return self.interface.activation or ("sigmoid" if num_outputs == 1 else "softmax")

    def check(self, images: Tensor) -> str:
        """Refuse a model that does not fit the images (N, C, *S), and return its activation."""
        negatives = sum(self.model_range) - images  # few scans alone may have logits between 0 and 1
        with torch.no_grad():
            outputs = self.outputs(torch.cat([images, negatives]))
        num = outputs.shape[1]
        self._index(num)
        if self.interface.activation == "softmax" and num == 1:
            raise ConfigError(f"activation: {self.name} has one output; use sigmoid or none")
        if self.interface.activation is None and bool(((outputs >= 0) & (outputs <= 1)).all()):
            raise ConfigError(
                f"activation: the outputs of {self.name} look like probabilities, not logits; set activation to none, "
                f"or to {self.activation(num)} if they are logits"
            )
        return self.activation(num)

    def _inputs(self, images: Tensor) -> Tensor:
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

    def _outputs(self, image: Tensor) -> Tensor:
        """The outputs (K,) for one input (1, C, *S)."""
        size = " x ".join(map(str, image.shape))
        try:
            outputs = self.run(image)
        except Exception as error:
            raise ConfigError(
                f"{self.name}: fails with an image of {size} ({shortened(one_line(error), 200)}); set input_size and "
                "input_channels to what it was trained with"
            ) from error
        if not hasattr(outputs, "shape") or outputs.numel() != outputs.shape[-1 if outputs.ndim else 0 :].numel():
            got = tuple(outputs.shape) if hasattr(outputs, "shape") else type(outputs).__name__
            raise ConfigError(f"{self.name}: gives {got} for one image; use a model that gives one row of outputs")
        flat: Tensor = outputs.reshape(-1).float()
        return flat

    def _index(self, num_outputs: int) -> int:
        index = self.interface.output_index
        if index is None and num_outputs > 2:
            raise ConfigError(f"output_index: {self.name} has {num_outputs} outputs; choose one, counted from 0")
        if index is not None and index >= num_outputs:
            raise ConfigError(f"output_index: {self.name} has {counted(num_outputs, 'output')}, counted from 0")
        return num_outputs - 1 if index is None else index


def check_file(path: Path) -> None:
    """Refuse a file that is no model, and without trust one that could run code."""
    from monai_diffae.bundle.code import refuse_code

    suffix = path.suffix.lower()
    if not path.is_file():
        raise ConfigError(f"model: there is no file {path.name}; give an .onnx, .pt2 or .ts file")
    if suffix not in _LOADERS:
        raise ConfigError(
            f"model: {path.name} is no .onnx, .pt2 or .ts file; export it with torch.export or torch.onnx"
        )
    refuse_code([_WITH_CODE[suffix]] if suffix in _WITH_CODE else [], path.name)


def read_users_model(path: Path, interface: ModelInterface, trained: TrainedBundle) -> UsersModel:
    """Read a file that :func:`check_file` accepts, for the images of a bundle."""
    channels, *size = trained.image_shape
    if interface.input_size and len(interface.input_size) != len(size):
        raise ConfigError(f"input_size: give {len(size)} numbers, one for each axis of the bundle's images")
    if interface.input_range and (len(interface.input_range) != 2 or np.diff(interface.input_range) <= 0):
        raise ConfigError("input_range: give two numbers, black and white, such as 0,1")
    if channels > 1 and interface.input_channels not in (None, channels):
        raise ConfigError(f"input_channels: the bundle's images have {channels}, which cannot be repeated; omit it")
    try:
        run = _LOADERS[path.suffix.lower()](path, trained.device)
    except MachineError:
        raise
    except Exception as error:
        reason = shortened(one_line(error), 200)
        raise ConfigError(f"model: {path.name} cannot be read ({reason}); export it again") from error
    return UsersModel(path.name, run, interface, trained.model_range)


def _load_onnx(path: Path, device: Any) -> Callable[[Tensor], Any]:
    """A file of operators and numbers; ONNX Runtime knows no operators of the file's own."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MachineError("model: onnxruntime is not installed; run pip install 'monai-diffae[export]'") from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name, *others) = (each.name for each in session.get_inputs())
    if others:
        raise ConfigError(f"it has {len(others) + 1} inputs instead of one")
    return lambda image: torch.from_numpy(session.run(None, {name: image.detach().cpu().numpy()})[0])


def _load_pt2(path: Path, device: Any) -> Callable[[Tensor], Any]:
    from torch.export.passes import move_to_device_pass

    return _frozen(move_to_device_pass(torch.export.load(path), device).module())


def _load_script(path: Path, device: Any) -> Callable[[Tensor], Any]:
    return _frozen(torch.jit.load(path, map_location=device).eval())


def _frozen(module: Any) -> Callable[[Tensor], Any]:
    """The module without gradients of its weights."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    run: Callable[[Tensor], Any] = module
    return run


_LOADERS = {".onnx": _load_onnx, ".pt2": _load_pt2, ".pt": _load_script, ".ts": _load_script}


def logit_of(target: float, activation: str) -> float:
    """The value at which a score is the target."""
    if activation == "none":
        return target
    if not 0 < target < 1:
        raise ConfigError(f"to: {quoted(target)} is no probability between 0 and 1; with activation none, give a value")
    return math.log(target / (1 - target))


def score_of(value: float, activation: str) -> float:
    """The score of a value."""
    return value if activation == "none" else 1 / (1 + math.exp(-min(max(value, -700.0), 700.0)))
