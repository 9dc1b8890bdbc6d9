"""Arrays in, PNG or a figure of matplotlib out."""

from monai_diffae.lazy import attach

MODULES = {
    **dict.fromkeys(("caption", "check_captions", "draw_cells"), "cells"),
    **dict.fromkeys((
        "CohortOverview", "draw_associations", "draw_calibration", "draw_cohort_overview", "draw_curves",
        "draw_diagnosis", "draw_explanation", "draw_few_labels", "draw_regularisations", "draw_reliability",
        "draw_stability",
    ), "charts"),
    **dict.fromkeys((
        "draw_anomalies", "draw_mosaic", "fitted", "in_colours", "plane_slices", "shown", "side_by_side",
        "three_planes", "thumbnail",
    ), "mosaic"),
}  # fmt: skip

__all__ = [*MODULES]

__getattr__ = attach(__name__, MODULES)
