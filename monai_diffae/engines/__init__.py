"""MONAI and Ignite engines that train and validate, and the seeds and batches that make them reproducible."""

from monai_diffae.lazy import attach

MODULES = {
    **dict.fromkeys((
        "StepBatchSampler", "StepDraws", "StepSeeding", "training_loader", "validation_loader",
    ), "batches"),
    **dict.fromkeys(("DistillationTrainer", "FewStepInferer", "first_and_last"), "distillation"),
    "DiffusionEvaluator": "evaluator",
    **dict.fromkeys(("FirstStageEvaluator", "FirstStageTrainer"), "first_stage"),
    "LatentCases": "latent_cases",
    **dict.fromkeys(("ImageLoss", "gradient_difference"), "losses"),
    **dict.fromkeys(("Workload", "check_memory", "free_memory"), "memory"),
    "resolve_precision": "precision",
    **dict.fromkeys(("AutoencoderPrepareBatch", "FixedPrepareBatch"), "prepare_batch"),
    **dict.fromkeys((
        "DiffusionTrainer", "ResumableTrainer", "TrainingEvents", "distributed", "learning_rate_schedule",
    ), "trainer"),
}  # fmt: skip

__all__ = [*MODULES]

__getattr__ = attach(__name__, MODULES)
