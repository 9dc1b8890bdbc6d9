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
from monai_diffae.pictures.mosaic import fitted as fitted
from monai_diffae.pictures.mosaic import in_colours as in_colours
from monai_diffae.pictures.mosaic import plane_slices as plane_slices
from monai_diffae.pictures.mosaic import shown as shown
from monai_diffae.pictures.mosaic import side_by_side as side_by_side
from monai_diffae.pictures.mosaic import three_planes as three_planes
from monai_diffae.pictures.mosaic import thumbnail as thumbnail

MODULES: dict[str, str]
__all__: list[str]
