"""Arrays in, PNG out."""

from __future__ import annotations

from monai_diffae.pictures.cells import caption, check_captions, draw_cells
from monai_diffae.pictures.charts import draw_calibration, draw_curves, draw_diagnosis, draw_few_labels
from monai_diffae.pictures.cohort_overview import CohortOverview, draw_cohort_overview
from monai_diffae.pictures.mosaic import (
    draw_anomalies,
    draw_mosaic,
    in_colours,
    plane_slices,
    three_planes,
    thumbnail,
)

__all__ = [
    "CohortOverview",
    "caption",
    "check_captions",
    "draw_anomalies",
    "draw_calibration",
    "draw_cells",
    "draw_cohort_overview",
    "draw_curves",
    "draw_diagnosis",
    "draw_few_labels",
    "draw_mosaic",
    "in_colours",
    "plane_slices",
    "three_planes",
    "thumbnail",
]
