"""Ignite handlers of a training: average, checkpoints, progress, curves, pictures, tracking."""

from __future__ import annotations

from monai_diffae.handlers.bad_scans import BadScans
from monai_diffae.handlers.checkpoint import CheckpointKeeper
from monai_diffae.handlers.checkpoint_file import check_resumes
from monai_diffae.handlers.curves import TrainingCurves
from monai_diffae.handlers.ema import EMA
from monai_diffae.handlers.first_stage import FirstStagePictures, LatentRemover, LatentScale
from monai_diffae.handlers.logged_model import log_bundle
from monai_diffae.handlers.mlflow import MLflowTracking, default_tracking_uri
from monai_diffae.handlers.pictures import ReconstructionPictures
from monai_diffae.handlers.probes import ZSemProbes
from monai_diffae.handlers.progress import TrainingProgress
from monai_diffae.handlers.statistics import RunningStatistics
from monai_diffae.handlers.tracked_training import TrackedTraining
from monai_diffae.handlers.twin_scans import TwinScans
from monai_diffae.handlers.validation import Validation

__all__ = [
    "EMA",
    "BadScans",
    "CheckpointKeeper",
    "FirstStagePictures",
    "LatentRemover",
    "LatentScale",
    "MLflowTracking",
    "ReconstructionPictures",
    "RunningStatistics",
    "TrackedTraining",
    "TrainingCurves",
    "TrainingProgress",
    "TwinScans",
    "Validation",
    "ZSemProbes",
    "check_resumes",
    "default_tracking_uri",
    "log_bundle",
]
