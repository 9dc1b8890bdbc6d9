"""The inference tasks; docs/label.md describes their options and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.embedding.index import EmbeddingIndex
from monai_diffae.apps.settings import Seed
from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.bundle.model import Detail
from monai_diffae.errors import ConfigError
from monai_diffae.label.label_app import AppFolder
from monai_diffae.label.task import Answer, DiffAETask, ServedModel, direction_names
from monai_diffae.latents.neighbors import nearest_neighbors
from monai_diffae.latents.statistics import LatentStatistics
from monai_diffae.serving.answers import ConflictError
from monai_diffae.transforms.native import fits_png

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
    return Answer({"mode": mode, "mse": mse}, case, case.back(images), fits_png(request.image, case.scan))


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
    return Answer(figures, case, edited, fits_png(request.image, case.scan))


@command
def diffae_encode(request: Any) -> Answer:
    """The semantic code z_sem of a scan."""
    case = request.open()
    return Answer({"z_sem": case.z_sem.cpu().tolist(), "slices": case.slices})


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


WITHOUT_IMAGE = ("diffae_encode", "diffae_neighbors")


def all_tasks(served: ServedModel, folder: AppFolder) -> dict[str, DiffAETask]:
    """All tasks by name."""
    functions = (diffae_anomaly_map, diffae_reconstruct, diffae_edit, diffae_encode, diffae_neighbors)
    mask = DiffAETask(diffae_anomaly, served, folder, _ANOMALY_LABELS)
    return {"diffae_anomaly": mask, **{each.__name__: DiffAETask(each, served, folder) for each in functions}}


def _direction_file(folder: AppFolder, name: str) -> Path:
    names = direction_names(folder)
    if not names:
        raise ConfigError(
            "direction: the app has none; run monai-diffae fit-direction and put its file into directions"
        )
    if not name and len(names) == 1:
        name = names[0]
    if name not in names:  # a name of the list cannot lead out of the folder
        raise ConfigError(f"direction: {name[:40]!r} is not one of {', '.join(names[:8])}")
    return folder.directions / f"{name}.json"
