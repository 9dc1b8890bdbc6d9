"""What the table beside an image says: predictions, drift, and distances to the case and to other patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.apps.synthesis.combination import Axes
from monai_diffae.explorer.atlas import Atlas
from monai_diffae.latents import Direction

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class ImageCodes:
    """The codes that an image is scored by, (1, D) each.

    Attributes:
        case: z_sem of the case.
        target: the z_sem that was decoded.
        image: z_sem of the decoded image; None: it is not known.
        is_preview: whether the image was decoded with few steps; it has no outlier scores then, which take a while.
    """

    case: Floats
    target: Floats
    image: Floats | None
    is_preview: bool

    @property
    def known(self) -> dict[str, Floats]:
        """The codes by name; ``image`` only if it is known."""
        return {"case": self.case, "target": self.target} | ({} if self.image is None else {"image": self.image})


def scores_of(atlas: Atlas, axes: Axes, row: int, codes: ImageCodes) -> dict[str, Any]:
    """The scores of an image.

    Returns:
        ``directions``: for each direction the predictions for the case, for what was requested (``target``) and for the
        image, and how far the image moved (``drift``, in standard deviations). ``to_itself``, ``nearest`` and
        ``nearest_row``: distances of the image to the case and to the nearest case of another patient, in normalised
        z_sem. ``outlier``: the outlier scores of the case, of what was requested and of the image; None in a preview,
        and in cohorts with too few training cases. ``components``: the image's positions along the components.
    """
    directions = [_along(name, each, codes) for name, each in axes.directions.items()]
    z_shown = codes.target if codes.image is None else codes.image
    z_norm, z_norm_case = (atlas.training.reference.normalised(z) for z in (z_shown, codes.case))
    nearest = atlas.nearest_other(z_norm[0], row)
    return {
        "directions": directions,
        "to_itself": float(np.linalg.norm(z_norm - z_norm_case)),
        "nearest": None if nearest is None else nearest[1],
        "nearest_row": None if nearest is None else nearest[0],
        "outlier": None if codes.is_preview else _outlier_scores(atlas, row, codes),
        "components": atlas.positions_of(z_norm)[0].tolist(),
        "is_encoded": codes.image is not None,
    }


def _outlier_scores(atlas: Atlas, row: int, codes: ImageCodes) -> dict[str, float] | None:
    scores = atlas.outlier_scores_of(np.concatenate(list(codes.known.values())), row)
    return None if scores is None else dict(zip(codes.known, scores, strict=True))


def _along(name: str, direction: Direction, codes: ImageCodes) -> dict[str, Any]:
    values: dict[str, Any] = {key: float(direction.predict(z)[0]) for key, z in codes.known.items()}
    if codes.image is not None:
        values["drift"] = float((direction.distance(codes.image) - direction.distance(codes.case))[0] / direction.std)
    return {"name": name, **values}
