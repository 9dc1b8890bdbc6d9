"""MONAI and Ignite engines that train and validate, and the seeds and batches that make them reproducible."""

from monai_diffae.engines.batches import StepBatchSampler, StepDraws, StepSeeding, training_loader, validation_loader
from monai_diffae.engines.distillation import DistillationTrainer, FewStepInferer, first_and_last
from monai_diffae.engines.evaluator import DiffusionEvaluator
from monai_diffae.engines.first_stage import FirstStageEvaluator, FirstStageTrainer
from monai_diffae.engines.latent_cases import LatentCases
from monai_diffae.engines.losses import ImageLoss, gradient_difference
from monai_diffae.engines.memory import Workload, check_memory
from monai_diffae.engines.precision import resolve_precision
from monai_diffae.engines.prepare_batch import AutoencoderPrepareBatch, FixedPrepareBatch
from monai_diffae.engines.trainer import (
    DiffusionTrainer,
    ResumableTrainer,
    TrainingEvents,
    distributed,
    learning_rate_schedule,
)

__all__ = [
    "AutoencoderPrepareBatch", "DiffusionEvaluator", "DiffusionTrainer", "DistillationTrainer", "FewStepInferer",
    "FirstStageEvaluator", "FirstStageTrainer", "FixedPrepareBatch", "ImageLoss", "LatentCases", "ResumableTrainer",
    "StepBatchSampler", "StepDraws", "StepSeeding", "TrainingEvents", "Workload", "check_memory", "distributed",
    "first_and_last", "gradient_difference", "learning_rate_schedule", "resolve_precision", "training_loader",
    "validation_loader",
]  # fmt: skip
