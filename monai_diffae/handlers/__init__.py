"""Ignite handlers of a training: average, checkpoints, progress, curves, pictures, tracking."""

from monai_diffae.handlers.checkpoint import CheckpointKeeper, check_resumes
from monai_diffae.handlers.logged_model import log_bundle
from monai_diffae.handlers.mlflow import MLflowTracking, default_tracking_uri
from monai_diffae.handlers.pictures import FirstStagePictures, ReconstructionPictures
from monai_diffae.handlers.progress import RunningStatistics, TrainingCurves, TrainingProgress
from monai_diffae.handlers.scans import BadScans, LatentRemover, LatentScale
from monai_diffae.handlers.validation import Validation, ZSemProbes
from monai_diffae.handlers.weights import EMA

__all__ = [
    "EMA", "BadScans", "CheckpointKeeper", "FirstStagePictures", "LatentRemover", "LatentScale", "MLflowTracking",
    "ReconstructionPictures", "RunningStatistics", "TrainingCurves", "TrainingProgress", "Validation", "ZSemProbes",
    "check_resumes", "default_tracking_uri", "log_bundle",
]  # fmt: skip
