from monai_diffae.apps.training.distill import image_loss as image_loss
from monai_diffae.apps.training.distill import open_teacher as open_teacher
from monai_diffae.apps.training.distill import read_teaching_cases as read_teaching_cases
from monai_diffae.apps.training.distill import student as student
from monai_diffae.apps.training.distill import teacher_levels as teacher_levels
from monai_diffae.apps.training.distill import teaching_trajectories as teaching_trajectories
from monai_diffae.apps.training.train import train_with_callbacks as train_with_callbacks
from monai_diffae.apps.training.train_latent import embedded_cohort as embedded_cohort
from monai_diffae.apps.training.train_latent import training_statistics as training_statistics

MODULES: dict[str, str]
__all__: list[str]
