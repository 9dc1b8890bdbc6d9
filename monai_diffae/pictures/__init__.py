"""Arrays in, PNG or a figure of matplotlib out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_diffae.lazy import attach

if TYPE_CHECKING:
    from monai_diffae.pictures.associations import draw_associations as draw_associations
    from monai_diffae.pictures.associations import draw_stability as draw_stability
    from monai_diffae.pictures.cells import caption as caption
    from monai_diffae.pictures.cells import check_captions as check_captions
    from monai_diffae.pictures.cells import draw_cells as draw_cells
    from monai_diffae.pictures.charts import draw_calibration as draw_calibration
    from monai_diffae.pictures.charts import draw_curves as draw_curves
    from monai_diffae.pictures.charts import draw_diagnosis as draw_diagnosis
    from monai_diffae.pictures.charts import draw_explanation as draw_explanation
    from monai_diffae.pictures.charts import draw_few_labels as draw_few_labels
    from monai_diffae.pictures.charts import draw_regularisations as draw_regularisations
    from monai_diffae.pictures.charts import draw_reliability as draw_reliability
    from monai_diffae.pictures.cohort_overview import CohortOverview as CohortOverview
    from monai_diffae.pictures.cohort_overview import draw_cohort_overview as draw_cohort_overview
    from monai_diffae.pictures.mosaic import draw_anomalies as draw_anomalies
    from monai_diffae.pictures.mosaic import draw_mosaic as draw_mosaic
    from monai_diffae.pictures.mosaic import in_colours as in_colours
    from monai_diffae.pictures.mosaic import in_rgb as in_rgb
    from monai_diffae.pictures.mosaic import plane_slices as plane_slices
    from monai_diffae.pictures.mosaic import three_planes as three_planes
    from monai_diffae.pictures.mosaic import thumbnail as thumbnail

_MODULES = {
    "CohortOverview": "cohort_overview",
    "caption": "cells",
    "check_captions": "cells",
    "draw_anomalies": "mosaic",
    "draw_associations": "associations",
    "draw_calibration": "charts",
    "draw_cells": "cells",
    "draw_cohort_overview": "cohort_overview",
    "draw_curves": "charts",
    "draw_diagnosis": "charts",
    "draw_explanation": "charts",
    "draw_few_labels": "charts",
    "draw_mosaic": "mosaic",
    "draw_regularisations": "charts",
    "draw_reliability": "charts",
    "draw_stability": "associations",
    "in_colours": "mosaic",
    "in_rgb": "mosaic",
    "plane_slices": "mosaic",
    "three_planes": "mosaic",
    "thumbnail": "mosaic",
}

__all__ = [*_MODULES]

__getattr__ = attach(__name__, _MODULES)
