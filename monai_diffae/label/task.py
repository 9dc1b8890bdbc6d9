"""An inference task of MONAI Label: a function of a request, whose keyword arguments are the options of clients."""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray

from monai_diffae.bundle import AnomalyDetector, TrainedBundle, load_bundle
from monai_diffae.bundle.model import ModelCase
from monai_diffae.errors import ConfigError
from monai_diffae.label.label_app import AppFolder
from monai_diffae.policies import check_choice

_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png")
# what 3D Slicer, OHIF, MONAILabelClient and MONAI Label itself add to requests
_FROM_OTHERS = frozenset({
    "result_extension", "result_dtype", "result_compress", "restore_label_idx", "client_id", "label_info",
    "label_prompt", "user", "model", "image", "description", "session", "session_id", "device", "logging", "timeout",
    "images", "multi_gpu", "gpus", "save_label", "label_tag", "max_workers", "max_batch_size", "local_rank", "_id",
    "_image_id", "image_id",
})  # fmt: skip


def check_keys(request: Mapping[str, Any], known: set[str]) -> None:
    """Refuse keys that neither a task declares nor viewers send."""
    unknown = sorted(set(map(str, request)) - known - _FROM_OTHERS)
    if unknown:
        raise ConfigError(f"params: {unknown[0][:40]!r} is unknown; use {', '.join(sorted(known)) or 'none'}")


def option_names(function: Callable[..., Any]) -> list[str]:
    """The names of a function's keyword arguments."""
    parameters = inspect.signature(inspect.unwrap(function)).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def shown_options(function: Callable[..., Any]) -> dict[str, Any]:
    """The options as clients show them: the default, or a list of choices that begins with the default."""
    declared = inspect.unwrap(function)
    hints = get_type_hints(declared)
    shown: dict[str, Any] = {}
    for name in option_names(function):
        default = inspect.signature(declared).parameters[name].default
        if get_origin(hints[name]) is Literal:
            shown[name] = [default, *(choice for choice in get_args(hints[name]) if choice != default)]
        elif default is not None:
            shown[name] = default
    return shown


class ServedModel:
    """A trained bundle for the requests of many threads, one at a time; it is loaded again when its files change."""

    def __init__(self, folder: Path, device: str | None = None) -> None:
        self.folder, self.device = folder, device
        self._lock = RLock()
        self._trained = self._load()

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return int(self._trained.config["spatial_dims"])

    @contextmanager
    def in_use(self) -> Iterator[TrainedBundle]:
        """The bundle with the weights that are in its folder now, for this thread alone."""
        with self._lock:
            if not self._trained.is_current():
                self._trained = self._load()
            yield self._trained

    def _load(self) -> TrainedBundle:
        trained = load_bundle(self.folder, self.device)
        if trained.image_keys != ["image"]:
            keys = ", ".join(trained.image_keys)
            raise ConfigError(
                f"{self.folder.name}: needs the images {keys} per case, but MONAI Label has one image per id; "
                "use another bundle"
            )
        return trained


@dataclass(frozen=True)
class Request:
    """One request for inference."""

    image: str  # the path of the scan
    id: str  # its id in the datastore; ``""`` for an uploaded scan
    slice: int | None  # the slice of a volume that a 2D bundle uses; None: all of them
    trained: TrainedBundle  # the bundle
    folder: AppFolder  # the app's folder

    def open(self) -> ModelCase:
        """Read the scan as the bundle sees it."""
        return self.trained.open(self.image, slice=self.slice)

    def detector(self) -> AnomalyDetector:
        """The bundle's anomaly detector."""
        return AnomalyDetector.load(self.trained, "/".join(self.trained.folder.parts[-2:]))


@dataclass(frozen=True)
class Answer:
    """The answer to a request."""

    figures: dict[str, Any]  # plain values for the client
    case: ModelCase | None = None  # the case whose space the image has; None: there is no image
    array: NDArray[Any] | None = None  # the image, ``[C, *native S]``
    is_picture: bool = False  # whether it has the intensities of a picture, from 0 to 255, so that PNG can hold it

    def write(self, suffix: str | None, dtype_name: str | None) -> str | None:
        """Write the image to a temporary file of this kind; None: PNG for pictures, else NIfTI."""
        if self.case is None or self.array is None:
            return None
        suffix, array = suffix or (".png" if self.is_picture else ".nii.gz"), self.array
        check_choice("result_extension", suffix, _SUFFIXES)
        if suffix == ".png" and self.is_picture:
            array = np.clip(np.round(array), 0, 255).astype(np.uint8)
        if dtype_name not in (None, array.dtype.name):
            raise ConfigError(f"result_dtype: must be {array.dtype.name} for this task; use this, or omit it")
        handle, name = tempfile.mkstemp(suffix=suffix, dir=_answers_folder())
        os.close(handle)
        try:
            self.case.write(name, array)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return name


@functools.cache
def _answers_folder() -> str:
    """A folder of this process for the files of answers, which the server removes once they are sent."""
    # not the temporary folder itself: MONAILabelClient (0.8.5) on the same machine saves what it gets there under the
    # same name, and would lose it
    folder = tempfile.mkdtemp(prefix="monai-diffae-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class DiffAETask(InferTask):
    """A task of MONAI Label that calls a function of a :class:`Request`; viewers list only tasks with ``labels``.

    The function's keyword arguments are the task's options: clients see them with their defaults, and every value that
    a client sends is checked by their types.
    """

    def __init__(
        self,
        function: Callable[..., Answer],
        served: ServedModel,
        folder: AppFolder,
        labels: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(
            type=InferType.SEGMENTATION if labels else InferType.OTHERS,
            labels=dict(labels or {}),
            dimension=served.spatial_dims,
            description=(inspect.getdoc(function) or "").partition("\n")[0].replace("`", ""),
            config=shown_options(function),
        )
        self._function, self._served, self._folder = function, served, folder
        self._options = option_names(function)

    def is_valid(self) -> bool:
        """Always: the bundle was loaded when the app started."""
        return True

    def config(self) -> dict[str, Any]:
        """The options, with the names of the directions that the app has at the moment."""
        options = dict(super().config())
        return {**options, "direction": direction_names(self._folder) or ""} if "direction" in options else options

    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """The path of a temporary file with the image, or None, and the figures."""
        check_keys(request, {*self._options, "slice"})
        options = {name: request[name] for name in self._options if name in request}
        started = time.monotonic()
        with self._served.in_use() as trained:
            image, id = str(request["image"]), str(request.get("image_id", ""))
            answer = self._function(Request(image, id, _slice(request), trained, self._folder), **options)
            file = answer.write(request.get("result_extension"), request.get("result_dtype"))
            figures = {**answer.figures, "model": trained.sha256}
        seconds = round(time.monotonic() - started, 3)
        return file, {**figures, "label_names": self.labels, "latencies": {"total": seconds}}


def direction_names(folder: AppFolder) -> list[str]:
    """The names of the files in an app's folder ``directions``, sorted."""
    return sorted(path.stem for path in folder.directions.glob("*.json"))


def _slice(request: Mapping[str, Any]) -> int | None:
    value = request.get("slice")
    if value is not None and (type(value) is not int or value < 0):
        raise ConfigError("slice: must be a whole number, 0 or above")
    return value
