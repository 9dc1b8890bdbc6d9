"""Arrays in, PNG out."""

from __future__ import annotations

from monai_diffae.pictures.anomalies import draw_anomalies
from monai_diffae.pictures.captions import caption, check_captions
from monai_diffae.pictures.cells import draw_cells
from monai_diffae.pictures.cohort_overview import CohortOverview, draw_cohort_overview
from monai_diffae.pictures.curves import draw_curves
from monai_diffae.pictures.diagnosis import draw_diagnosis
from monai_diffae.pictures.mosaic import draw_mosaic, in_colours, plane_slices, three_planes
from monai_diffae.pictures.probes import draw_calibration, draw_few_labels
from monai_diffae.pictures.thumbnails import thumbnail

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
