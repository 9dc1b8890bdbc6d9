"""Metrics: image quality, reconstruction errors, anomaly maps, validation loss, use of z_sem, x_T, copies."""

from monai_diffae.lazy import attach

MODULES = {
    **dict.fromkeys((
        "anomaly_maps", "cross_fitted_maps", "highest_mean", "mask_scores", "residual_spread", "smoothed_residuals",
    ), "anomaly"),
    **dict.fromkeys(("changed_views", "level_losses", "noise_statistics"), "codes"),
    **dict.fromkeys((
        "SMALLEST_SIDE", "InceptionFeatures", "PerceptualDistance", "RadImageNetFeatures", "frechet_distance",
        "kernel_distance", "precision_and_recall",
    ), "deep_features"),
    **dict.fromkeys(("ImageQuality", "reconstruction_errors"), "image_quality"),
    **dict.fromkeys(("CopyingRatio", "ValidationLoss", "ZSemUsage"), "training"),
}  # fmt: skip

__all__ = [*MODULES]

__getattr__ = attach(__name__, MODULES)
