from monai_diffae.bundle.code import trusting as trusting
from monai_diffae.bundle.config import check_image_size as check_image_size
from monai_diffae.bundle.folders import describe_folder as describe_folder
from monai_diffae.bundle.folders import init_bundle as init_bundle
from monai_diffae.bundle.folders import publish as publish
from monai_diffae.bundle.loading import TrainedLatent as TrainedLatent
from monai_diffae.bundle.loading import check_latent_image_size as check_latent_image_size
from monai_diffae.bundle.loading import describe_fast_decoder as describe_fast_decoder
from monai_diffae.bundle.loading import inferer_overrides as inferer_overrides
from monai_diffae.bundle.loading import load_bundle as load_bundle
from monai_diffae.bundle.loading import load_first_stage as load_first_stage
from monai_diffae.bundle.loading import load_latent as load_latent
from monai_diffae.bundle.loading import preprocessing_of as preprocessing_of
from monai_diffae.bundle.model import Anomaly as Anomaly
from monai_diffae.bundle.model import AnomalyDetector as AnomalyDetector
from monai_diffae.bundle.model import AnomalySettings as AnomalySettings
from monai_diffae.bundle.model import ModelCase as ModelCase
from monai_diffae.bundle.model import TrainedBundle as TrainedBundle
from monai_diffae.bundle.model_file import checksum as checksum
from monai_diffae.bundle.training import TrainingDescription as TrainingDescription
from monai_diffae.bundle.training import check_all_set as check_all_set
from monai_diffae.bundle.training import check_monai_weights as check_monai_weights
from monai_diffae.bundle.training import check_run as check_run
from monai_diffae.bundle.training import check_training as check_training
from monai_diffae.bundle.training import describe_latent as describe_latent
from monai_diffae.bundle.training import describe_model as describe_model
from monai_diffae.bundle.training import fit_first_stage as fit_first_stage
from monai_diffae.bundle.training import running_config as running_config

MODULES: dict[str, str]
__all__: list[str]
