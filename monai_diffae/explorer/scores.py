"""What the table beside an image says: predictions, drift, and distances to the case and to other patients."""

# tested in tests/explorer/test_app.py

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.apps.synthesis.combination import Axes
from monai_diffae.explorer.atlas import Atlas
from monai_diffae.latents import Direction

Floats = NDArray[np.floating[Any]]


def scores_of(
    atlas: Atlas, axes: Axes, row: int, z_case: Floats, z_target: Floats, z_image: Floats | None
) -> dict[str, Any]:
    """The scores of an image.

    Args:
        atlas: the other cases.
        axes: the directions.
        row: the row of the case.
        z_case: its z_sem (1, D).
        z_target: the z_sem that was decoded, (1, D).
        z_image: the z_sem of the decoded image (1, D); None: it is not known.

    Returns:
        ``directions``: for each direction the predictions for the case, for what was requested (``target``) and for the
        image, and how far the image moved (``drift``, in standard deviations). ``to_itself``, ``nearest`` and
        ``nearest_row``: distances of the image to the case and to the nearest case of another patient, in normalised
        z_sem. ``components``: the image's positions along the components.
    """
    directions = [_along(name, each, z_case, z_target, z_image) for name, each in axes.directions.items()]
    z_norm, z_norm_case = (
        atlas.training.reference.normalised(z) for z in (z_target if z_image is None else z_image, z_case)
    )
    nearest = atlas.nearest_other(z_norm[0], row)
    return {
        "directions": directions,
        "to_itself": float(np.linalg.norm(z_norm - z_norm_case)),
        "nearest": None if nearest is None else nearest[1],
        "nearest_row": None if nearest is None else nearest[0],
        "components": atlas.positions_of(z_norm)[0].tolist(),
        "is_encoded": z_image is not None,
    }


def _along(name: str, direction: Direction, z_case: Floats, z_target: Floats, z_image: Floats | None) -> dict[str, Any]:
    predictions = {"case": z_case, "target": z_target} | ({} if z_image is None else {"image": z_image})
    values: dict[str, Any] = {key: float(direction.predict(z)[0]) for key, z in predictions.items()}
    if z_image is not None:
        values["drift"] = float((direction.distance(z_image) - direction.distance(z_case))[0] / direction.std)
    return {"name": name, **values}
