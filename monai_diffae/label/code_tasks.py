"""The tasks that answer with figures only: ``diffae_encode`` and ``diffae_neighbors``."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.embedding.index import EmbeddingIndex
from monai_diffae.label.task import Answer
from monai_diffae.latents.neighbors import nearest_neighbors
from monai_diffae.latents.statistics import LatentStatistics
from monai_diffae.serving.answers import ConflictError


@command
def diffae_encode(request: Any) -> Answer:
    """The semantic code z_sem of a scan.

    Args:
        request: a :class:`~monai_diffae.label.task.Request`.

    Returns:
        ``z_sem``: one list of numbers per image: for a volume in a 2D bundle, per slice that the bundle uses, else one.
        ``slices``: the indices of these slices; ``[None]`` for a whole image.

    Raises:
        ScanError: the scan cannot be used.
    """
    case = request.open()
    return Answer({"z_sem": case.z_sem.cpu().tolist(), "slices": case.slices})


@command
def diffae_neighbors(request: Any, *, k: Annotated[int, Ge(1), Le(1000)] = 5) -> Answer:
    """The images of the datastore that are most similar to a scan in z_sem.

    Args:
        request: a :class:`~monai_diffae.label.task.Request`.
        k: number of neighbors; fewer if the datastore has fewer.

    Returns:
        ``neighbors``: ``id`` and ``distance`` of each, nearest first. z_sem is normalised by the images of the
        datastore; volumes in a 2D bundle are compared by the mean over their slices.

    Raises:
        ConflictError: no other image has been scored.
        ScanError: the scan cannot be used.
    """
    indexed = EmbeddingIndex(request.folder.index).read(request.trained)
    k = min(k, sum(id != request.id for id in indexed.ids))
    if not k:
        raise ConflictError("neighbors: no other image is encoded yet; send POST /scoring/diffae_embed")
    codes = request.open().z_sem.mean(dim=0, keepdim=True).cpu().numpy()
    statistics = LatentStatistics.of(indexed.z_sem)
    z, pool = (statistics.normalise(each.astype(np.float64)) for each in (codes, indexed.z_sem))
    nearest = nearest_neighbors(z, pool, k, [request.id], indexed.ids)
    found = zip(nearest.indices[0], nearest.distances[0], strict=True)
    return Answer({"neighbors": [{"id": indexed.ids[row], "distance": float(distance)} for row, distance in found]})
