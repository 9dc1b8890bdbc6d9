"""Bundle folders: their files, the model in them, and the training that makes it.

The names below are imported when they are first used, as most of them load torch and MONAI.
"""

from monai_diffae.lazy import attach

MODULES = {
    "trusting": "code",
    "check_image_size": "config",
    **dict.fromkeys(("describe_folder", "init_bundle", "publish"), "folders"),
    **dict.fromkeys((
        "TrainedLatent", "check_latent_image_size", "describe_fast_decoder", "inferer_overrides", "load_bundle",
        "load_first_stage", "load_latent", "preprocessing_of",
    ), "loading"),
    **dict.fromkeys(("Anomaly", "AnomalyDetector", "AnomalySettings", "ModelCase", "TrainedBundle"), "model"),
    "checksum": "model_file",
    **dict.fromkeys((
        "TrainingDescription", "check_all_set", "check_monai_weights", "check_run", "check_training", "describe_latent",
        "describe_model", "fit_first_stage", "running_config",
    ), "training"),
}  # fmt: skip

__all__ = [*MODULES]

__getattr__ = attach(__name__, MODULES)
