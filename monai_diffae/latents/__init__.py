"""Computations on z_sem: statistics, directions, components, neighbors and two-sample tests. Arrays only."""

from monai_diffae.latents.components import PrincipalComponents, principal_components
from monai_diffae.latents.dimensions import ActiveDimensions, active_dimensions
from monai_diffae.latents.direction_fit import fit_direction
from monai_diffae.latents.directions import Direction
from monai_diffae.latents.disentanglement import Disentanglement, dci
from monai_diffae.latents.neighbors import Neighbors, nearest_neighbors, p_values
from monai_diffae.latents.outliers import OutlierScores, ReferenceCases, outlier_scores
from monai_diffae.latents.statistics import LatentStatistics
from monai_diffae.latents.two_samples import (
    DifferenceInterval,
    PermutationTest,
    copying_ratio,
    difference_interval,
    energy_distance,
    mmd,
    nearest_distances,
    permutation_test,
)
from monai_diffae.latents.whitening import whitening

__all__ = [
    "ActiveDimensions",
    "DifferenceInterval",
    "Direction",
    "Disentanglement",
    "LatentStatistics",
    "Neighbors",
    "OutlierScores",
    "PermutationTest",
    "PrincipalComponents",
    "ReferenceCases",
    "active_dimensions",
    "copying_ratio",
    "dci",
    "difference_interval",
    "energy_distance",
    "fit_direction",
    "mmd",
    "nearest_distances",
    "nearest_neighbors",
    "outlier_scores",
    "p_values",
    "permutation_test",
    "principal_components",
    "whitening",
]
