from monai_diffae.latents.directions import Direction as Direction
from monai_diffae.latents.directions import fit_direction as fit_direction
from monai_diffae.latents.neighbors import Neighbors as Neighbors
from monai_diffae.latents.neighbors import OutlierScores as OutlierScores
from monai_diffae.latents.neighbors import ReferenceCases as ReferenceCases
from monai_diffae.latents.neighbors import copying_ratio as copying_ratio
from monai_diffae.latents.neighbors import mmd as mmd
from monai_diffae.latents.neighbors import near_pairs as near_pairs
from monai_diffae.latents.neighbors import nearest_distances as nearest_distances
from monai_diffae.latents.neighbors import nearest_neighbors as nearest_neighbors
from monai_diffae.latents.neighbors import outlier_scores as outlier_scores
from monai_diffae.latents.neighbors import p_values as p_values
from monai_diffae.latents.representation import Disentanglement as Disentanglement
from monai_diffae.latents.representation import dci as dci
from monai_diffae.latents.statistics import ActiveDimensions as ActiveDimensions
from monai_diffae.latents.statistics import LatentStatistics as LatentStatistics
from monai_diffae.latents.statistics import PrincipalComponents as PrincipalComponents
from monai_diffae.latents.statistics import active_dimensions as active_dimensions
from monai_diffae.latents.statistics import principal_components as principal_components

MODULES: dict[str, str]
__all__: list[str]
