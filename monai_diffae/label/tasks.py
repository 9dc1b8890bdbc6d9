"""The inference tasks: functions of a request, whose keyword arguments are the options of clients.

docs/label.md describes their options and figures.
"""

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
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from annotated_types import Ge, Le
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray

from monai_diffae.apps.command import command
from monai_diffae.apps.embedding.encoders import wide_checksum, with_wide_features
from monai_diffae.apps.embedding.index import EmbeddingIndex
from monai_diffae.apps.settings import Seed
from monai_diffae.apps.study.predict import predicted_columns, read_predictors
from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.bundle import AnomalyDetector, TrainedBundle, load_bundle
from monai_diffae.bundle.model import ModelCase
from monai_diffae.data.folders import sequences_beside
from monai_diffae.errors import ConfigError
from monai_diffae.label.label_app import AppFolder
from monai_diffae.latents.neighbors import nearest_neighbors
from monai_diffae.latents.statistics import LatentStatistics
from monai_diffae.policies import Detail, check_choice
from monai_diffae.serving.answers import ConflictError

_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png")
# what 3D Slicer, OHIF, MONAILabelClient and MONAI Label itself add to requests
_FROM_OTHERS = frozenset(
    {
        "result_extension",
        "result_dtype",
        "result_compress",
        "restore_label_idx",
        "client_id",
        "label_info",
        "label_prompt",
        "user",
        "model",
        "image",
        "description",
        "session",
        "session_id",
        "device",
        "logging",
        "timeout",
        "images",
        "multi_gpu",
        "gpus",
        "save_label",
        "label_tag",
        "max_workers",
        "max_batch_size",
        "local_rank",
        "_id",
        "_image_id",
        "image_id",
    }
)


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
                f"{self.folder.name}: needs {keys}, but MONAI Label has one image per id; use another bundle"
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
        """Read the scan as the bundle sees it: with the other sequences of the case, if it takes several."""
        beside = sequences_beside(Path(self.image)) if self.trained.config.get("sequences") else {}
        return self.trained.open(beside or self.image, slice=self.slice)

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
        if suffix == ".png" and not self.is_picture and array.dtype.kind == "f":
            raise ConfigError("result_extension: PNG cannot hold a map; use .nii.gz or .nrrd")
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


# -- the tasks ---------------------------------------------------------------------------------------------------------

_ANOMALY_LABELS = {"anomalies": 1}  # OHIF computes the colour from the name: amber; "anomaly" is nearly black

Steps = Annotated[int, Ge(0), Le(1000)]
Evaluations = Annotated[int, Ge(0), Le(10_000)]


@command
def diffae_anomaly(request: Any, *, quantile: Annotated[float, Ge(0), Le(1)] = 0.99) -> Answer:
    """The unusual voxels of a scan, as a label map."""
    case = request.open()
    anomaly = request.detector()(case)
    mask = case.back_mask(anomaly.mask(quantile))
    figures = {"score": anomaly.score, "p_value": anomaly.p_value, "quantile": quantile, "voxels": int(mask.sum())}
    return Answer(figures, case, mask)


@command
def diffae_anomaly_map(request: Any) -> Answer:
    """How unusual each voxel of a scan is, and how unusual the scan is as a whole."""
    case = request.open()
    anomaly = request.detector()(case)
    return Answer({"score": anomaly.score, "p_value": anomaly.p_value}, case, case.back_map(anomaly.map))


@command
def diffae_reconstruct(
    request: Any,
    *,
    mode: Literal["z_sem", "x_T"] = "z_sem",
    steps: Steps = 0,
    draws: Annotated[int, Ge(1), Le(100)] = 1,
    seed: Seed = 0,
    max_evaluations: Evaluations = 100,
) -> Answer:
    """The scan, decoded from its codes: in the scan's own shape, affine and intensities."""
    case = request.open()
    images = case.reconstruct(mode, steps=steps or None, draws=draws, seed=seed, max_evaluations=max_evaluations)
    mse = float((images - case.images).square().mean())
    return Answer({"mode": mode, "mse": mse}, case, case.back(images), case.scan.suffix == ".png")


@command
def diffae_edit(
    request: Any,
    *,
    direction: str = "",
    strength: Annotated[float, Ge(-10), Le(10)] = 2.0,
    detail: Detail = "own",
    steps: Steps = 0,
    max_evaluations: Evaluations = 100,
) -> Answer:
    """The scan, edited along a direction in z_sem that is stored in the app's folder ``directions``."""
    line = read_direction(_direction_file(request.folder, direction))
    trained = request.trained
    line.check_fits(trained.sha256, trained.z_channels, trained.preprocessing_sha256)
    case = request.open()
    codes = case.z_sem.cpu().numpy()
    target = line.move(codes, strength)
    edited = case.edited(
        torch.from_numpy(target).to(case.z_sem), detail=detail, steps=steps or None, max_evaluations=max_evaluations
    )
    figures = {
        "direction": line.target,
        "strength": strength,
        "detail": detail,
        "prediction": {"scan": line.predict(codes).tolist(), "edited": line.predict(target).tolist()},
    }
    return Answer(figures, case, edited, case.scan.suffix == ".png")


@command
def diffae_encode(request: Any) -> Answer:
    """The semantic code z_sem of a scan."""
    case = request.open()
    return Answer({"z_sem": case.z_sem.cpu().tolist(), "slices": case.slices})


@command
def diffae_predict(request: Any) -> Answer:
    """The labels that the app's predictor expects: probabilities of classes, or a number with its interval."""
    models, origin = read_predictors(request.folder.predictor)
    trained = request.trained
    made_with = origin["model"], origin["preprocessing"] or trained.preprocessing_sha256
    if made_with != (trained.sha256, trained.preprocessing_sha256):
        raise ConfigError("predictor.safetensors: is of another model or preprocessing; make it with this bundle")
    if any(each.features == "wide" for each in models):
        if origin["wide"] != wide_checksum(trained.folder):
            raise ConfigError("predictor.safetensors: its wide features are others; make it again")
        request = replace(request, trained=with_wide_features(trained))
    codes, size = request.open().z_sem.double().cpu().numpy(), trained.z_channels
    std = codes[:, :size].std(axis=0, keepdims=True)
    if origin["pool"] != "none":  # of a volume's slices
        codes = codes.mean(axis=0, keepdims=True)
    z = np.concatenate([codes[:, :size], std], axis=1) if origin["pool"] == "mean_std" else codes[:, :size]
    by_name = {"z": z, "wide": codes[:, size:]}
    columns = {m.target + end: v for m in models for end, v in predicted_columns(m, by_name).items()}
    return Answer({name: values.tolist() for name, values in columns.items()})


@command
def diffae_neighbors(request: Any, *, k: Annotated[int, Ge(1), Le(1000)] = 5) -> Answer:
    """The images of the datastore that are most similar to a scan in z_sem."""
    indexed = EmbeddingIndex(request.folder.index).read(request.trained)
    k = min(k, sum(id != request.id for id in indexed.ids))
    if not k:
        raise ConflictError("neighbors: no other image is encoded yet; send POST /scoring/diffae_embed")
    codes = request.open().z_sem.mean(dim=0, keepdim=True).cpu().numpy()
    statistics = LatentStatistics.of(indexed.z_sem)
    z, pool = (statistics.normalise(each.astype(np.float64)) for each in (codes, indexed.z_sem))
    nearest = nearest_neighbors(z, pool, k, [request.id], indexed.ids)
    pairs = zip(nearest.indices[0], nearest.distances[0], strict=True)
    return Answer({"neighbors": [{"id": indexed.ids[row], "distance": float(distance)} for row, distance in pairs]})


WITHOUT_IMAGE = ("diffae_encode", "diffae_predict", "diffae_neighbors")


def all_tasks(served: ServedModel, folder: AppFolder) -> dict[str, DiffAETask]:
    """All tasks by name."""
    functions = (diffae_anomaly_map, diffae_reconstruct, diffae_edit, diffae_encode, diffae_predict, diffae_neighbors)
    mask = DiffAETask(diffae_anomaly, served, folder, _ANOMALY_LABELS)
    return {"diffae_anomaly": mask, **{each.__name__: DiffAETask(each, served, folder) for each in functions}}


def _direction_file(folder: AppFolder, name: str) -> Path:
    names = direction_names(folder)
    if not name and len(names) == 1:
        name = names[0]
    if name not in names:  # a name of the list cannot lead out of the folder
        known = ", ".join(names[:8]) or "those in the folder directions, which is empty; put a file of fit-direction in"
        raise ConfigError(f"direction: {name[:40]!r} is not one of {known}")
    return folder.directions / f"{name}.json"
