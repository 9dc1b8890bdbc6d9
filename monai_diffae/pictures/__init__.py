"""Arrays in, PNG or a figure of matplotlib out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_diffae.lazy import attach

if TYPE_CHECKING:
    from monai_diffae.pictures.cells import caption as caption
    from monai_diffae.pictures.cells import check_captions as check_captions
    from monai_diffae.pictures.cells import draw_cells as draw_cells
    from monai_diffae.pictures.charts import CohortOverview as CohortOverview
    from monai_diffae.pictures.charts import draw_associations as draw_associations
    from monai_diffae.pictures.charts import draw_calibration as draw_calibration
    from monai_diffae.pictures.charts import draw_cohort_overview as draw_cohort_overview
    from monai_diffae.pictures.charts import draw_curves as draw_curves
    from monai_diffae.pictures.charts import draw_diagnosis as draw_diagnosis
    from monai_diffae.pictures.charts import draw_explanation as draw_explanation
    from monai_diffae.pictures.charts import draw_few_labels as draw_few_labels
    from monai_diffae.pictures.charts import draw_regularisations as draw_regularisations
    from monai_diffae.pictures.charts import draw_reliability as draw_reliability
    from monai_diffae.pictures.charts import draw_stability as draw_stability
    from monai_diffae.pictures.mosaic import draw_anomalies as draw_anomalies
    from monai_diffae.pictures.mosaic import draw_mosaic as draw_mosaic
    from monai_diffae.pictures.mosaic import in_colours as in_colours
    from monai_diffae.pictures.mosaic import in_rgb as in_rgb
    from monai_diffae.pictures.mosaic import plane_slices as plane_slices
    from monai_diffae.pictures.mosaic import three_planes as three_planes
    from monai_diffae.pictures.mosaic import thumbnail as thumbnail

_MODULES = {
    **dict.fromkeys(("caption", "check_captions", "draw_cells"), "cells"),
    **dict.fromkeys((
        "CohortOverview", "draw_associations", "draw_calibration", "draw_cohort_overview", "draw_curves",
        "draw_diagnosis", "draw_explanation", "draw_few_labels", "draw_regularisations", "draw_reliability",
        "draw_stability",
    ), "charts"),
    **dict.fromkeys((
        "draw_anomalies", "draw_mosaic", "in_colours", "in_rgb", "plane_slices", "three_planes", "thumbnail",
    ), "mosaic"),
}  # fmt: skip

__all__ = [*_MODULES]

__getattr__ = attach(__name__, _MODULES)
