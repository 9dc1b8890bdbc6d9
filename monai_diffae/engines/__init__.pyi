from monai_diffae.engines.batches import StepBatchSampler as StepBatchSampler
from monai_diffae.engines.batches import StepDraws as StepDraws
from monai_diffae.engines.batches import StepSeeding as StepSeeding
from monai_diffae.engines.batches import training_loader as training_loader
from monai_diffae.engines.batches import validation_loader as validation_loader
from monai_diffae.engines.distillation import DistillationTrainer as DistillationTrainer
from monai_diffae.engines.distillation import FewStepInferer as FewStepInferer
from monai_diffae.engines.distillation import first_and_last as first_and_last
from monai_diffae.engines.evaluator import DiffusionEvaluator as DiffusionEvaluator
from monai_diffae.engines.first_stage import FirstStageEvaluator as FirstStageEvaluator
from monai_diffae.engines.first_stage import FirstStageTrainer as FirstStageTrainer
from monai_diffae.engines.latent_cases import LatentCases as LatentCases
from monai_diffae.engines.losses import ImageLoss as ImageLoss
from monai_diffae.engines.losses import gradient_difference as gradient_difference
from monai_diffae.engines.memory import Workload as Workload
from monai_diffae.engines.memory import check_memory as check_memory
from monai_diffae.engines.memory import free_memory as free_memory
from monai_diffae.engines.precision import resolve_precision as resolve_precision
from monai_diffae.engines.prepare_batch import AutoencoderPrepareBatch as AutoencoderPrepareBatch
from monai_diffae.engines.prepare_batch import FixedPrepareBatch as FixedPrepareBatch
from monai_diffae.engines.trainer import DiffusionTrainer as DiffusionTrainer
from monai_diffae.engines.trainer import ResumableTrainer as ResumableTrainer
from monai_diffae.engines.trainer import TrainingEvents as TrainingEvents
from monai_diffae.engines.trainer import distributed as distributed
from monai_diffae.engines.trainer import learning_rate_schedule as learning_rate_schedule

MODULES: dict[str, str]
__all__: list[str]
