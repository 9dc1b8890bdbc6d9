from monai_diffae.inferers.autoencoding import DiffusionAutoencoderInferer as DiffusionAutoencoderInferer
from monai_diffae.inferers.autoencoding import ReconstructionMode as ReconstructionMode
from monai_diffae.inferers.generation import LatentInferer as LatentInferer
from monai_diffae.inferers.reconstruction import FirstStageInferer as FirstStageInferer
from monai_diffae.inferers.reconstruction import FirstStageReconstructor as FirstStageReconstructor
from monai_diffae.inferers.reconstruction import Reconstructor as Reconstructor
from monai_diffae.inferers.reconstruction import encode_exactly as encode_exactly
from monai_diffae.inferers.reconstruction import estimate_from_noised as estimate_from_noised
from monai_diffae.inferers.reconstruction import images_at_once as images_at_once

MODULES: dict[str, str]
__all__: list[str]
