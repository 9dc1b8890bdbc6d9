"""An inference task of MONAI Label: a function of a request, whose keyword arguments are the options of clients."""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray

from monai_diffae.bundle import TrainedBundle
from monai_diffae.errors import ConfigError
from monai_diffae.label.app_folder import AppFolder
from monai_diffae.label.options import check_keys, option_names, shown_options
from monai_diffae.label.served_model import ServedModel

if TYPE_CHECKING:
    from monai_diffae.bundle.model import ModelCase

_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png")


@dataclass(frozen=True)
class Request:
    """One request for inference.

    Attributes:
        image: the path of the scan.
        id: its id in the datastore; ``""`` for an uploaded scan.
        slice: the slice of a volume that a 2D bundle uses; None: all of them.
        trained: the bundle.
        served: where the bundle comes from.
        folder: the app's folder.
    """

    image: str
    id: str
    slice: int | None
    trained: TrainedBundle
    served: ServedModel
    folder: AppFolder

    def open(self) -> ModelCase:
        """Read the scan as the bundle sees it.

        Raises:
            ScanError: it cannot be used, for instance because it has other dimensions than the bundle's images.
        """
        return self.trained.open(self.image, slice=self.slice)


@dataclass(frozen=True)
class NativeImage:
    """An image in the space of a scan.

    Attributes:
        case: the case of the scan.
        array: ``[C, *native S]``.
        is_picture: whether the array has the intensities of a picture, from 0 to 255, so that PNG can hold it.
    """

    case: ModelCase
    array: NDArray[Any]
    is_picture: bool = False

    def write(self, suffix: str | None, dtype_name: str | None) -> str:
        """Write a temporary file, whose name says nothing about the scan, and return its path.

        Args:
            suffix: the kind of file; None: PNG for pictures, else NIfTI.
            dtype_name: the data type that a client asked for; None: any.

        Raises:
            ConfigError: the image has another data type, or the kind of file cannot hold it.
        """
        suffix, array = suffix or (".png" if self.is_picture else ".nii.gz"), self.array
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
    """A folder of this process for the files of answers, which the server removes once they are sent.

    They do not lie in the temporary folder itself: there, ``MONAILabelClient`` (0.8.5) on the same machine saves what
    it gets under the same name, and would lose it.
    """
    folder = tempfile.mkdtemp(prefix="monai-diffae-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        figures: plain values for the client.
        image: an image for the client; None: there are figures only.
    """

    figures: dict[str, Any]
    image: NativeImage | None = None


class DiffAETask(InferTask):
    """A task of MONAI Label that calls a function of a :class:`Request`.

    Args:
        function: a function with `@command`. Its keyword arguments are the task's options: clients see them with their
            defaults, and every value that a client sends is checked by their types.
        served: the bundle.
        folder: the app's folder.
        type: what viewers list the task as.
        labels: the labels of the image that the task makes.
        makes_image: whether the answer has an image.
    """

    def __init__(
        self,
        function: Callable[..., Answer],
        served: ServedModel,
        folder: AppFolder,
        *,
        type: InferType = InferType.OTHERS,
        labels: Mapping[str, int] | None = None,
        makes_image: bool = True,
    ) -> None:
        description = (inspect.getdoc(function) or "").partition("\n")[0].replace("`", "")
        super().__init__(
            type=type,
            labels=dict(labels or {}),
            dimension=served.spatial_dims,
            description=description,
            config=shown_options(function),
        )
        self._function, self._served, self._folder = function, served, folder
        self._options = option_names(function)
        self.makes_image = makes_image

    def is_valid(self) -> bool:
        """Always: the bundle was loaded when the app started."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Answer a request.

        Args:
            request: ``image`` (a path), the options, and what clients and MONAI Label add.

        Returns:
            The path of a temporary file with the image, or None, and the figures.

        Raises:
            ConfigError: the request has an unknown key, or a value that cannot be used.
            ScanError: the scan cannot be used.
        """
        check_keys(request, {*self._options, "slice"}, "params")
        options = {name: request[name] for name in self._options if name in request}
        check_file_format(request)
        started = time.monotonic()
        with self._served.in_use() as trained:
            image, id = str(request["image"]), str(request.get("image_id", ""))
            call = Request(image, id, _slice(request), trained, self._served, self._folder)
            answer = self._function(call, **options)
            asked = (request.get("result_extension") or None, request.get("result_dtype"))
            file = None if answer.image is None else answer.image.write(*asked)
            figures = {**answer.figures, "model": trained.sha256}
        seconds = round(time.monotonic() - started, 3)
        return file, {**figures, "label_names": self.labels, "latencies": {"total": seconds}}


def _slice(request: Mapping[str, Any]) -> int | None:
    value = request.get("slice")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError("slice: must be a whole number, 0 or above")
    return value


def check_file_format(request: Mapping[str, Any]) -> None:
    """Check the kind of file that a client asks for.

    Raises:
        ConfigError: it cannot be written.
    """
    suffix = request.get("result_extension")
    if suffix and suffix not in _SUFFIXES:
        raise ConfigError(f"result_extension: {str(suffix)[:20]!r} is not one of {', '.join(_SUFFIXES)}")
