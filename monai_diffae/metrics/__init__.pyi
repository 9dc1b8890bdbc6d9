from monai_diffae.metrics.anomaly import anomaly_maps as anomaly_maps
from monai_diffae.metrics.anomaly import cross_fitted_maps as cross_fitted_maps
from monai_diffae.metrics.anomaly import highest_mean as highest_mean
from monai_diffae.metrics.anomaly import mask_scores as mask_scores
from monai_diffae.metrics.anomaly import residual_spread as residual_spread
from monai_diffae.metrics.anomaly import smoothed_residuals as smoothed_residuals
from monai_diffae.metrics.codes import changed_views as changed_views
from monai_diffae.metrics.codes import level_losses as level_losses
from monai_diffae.metrics.codes import noise_statistics as noise_statistics
from monai_diffae.metrics.deep_features import SMALLEST_SIDE as SMALLEST_SIDE
from monai_diffae.metrics.deep_features import InceptionFeatures as InceptionFeatures
from monai_diffae.metrics.deep_features import PerceptualDistance as PerceptualDistance
from monai_diffae.metrics.deep_features import RadImageNetFeatures as RadImageNetFeatures
from monai_diffae.metrics.deep_features import frechet_distance as frechet_distance
from monai_diffae.metrics.deep_features import kernel_distance as kernel_distance
from monai_diffae.metrics.deep_features import precision_and_recall as precision_and_recall
from monai_diffae.metrics.image_quality import ImageQuality as ImageQuality
from monai_diffae.metrics.image_quality import reconstruction_errors as reconstruction_errors
from monai_diffae.metrics.training import CopyingRatio as CopyingRatio
from monai_diffae.metrics.training import ValidationLoss as ValidationLoss
from monai_diffae.metrics.training import ZSemUsage as ZSemUsage

MODULES: dict[str, str]
__all__: list[str]
