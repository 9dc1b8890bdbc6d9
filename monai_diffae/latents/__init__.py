"""What can be done with z_sem: statistics, directions, components, probes, two-sample tests. Arrays only."""

from monai_diffae.latents.components import PrincipalComponents, principal_components
from monai_diffae.latents.direction_fit import fit_direction
from monai_diffae.latents.directions import Direction
from monai_diffae.latents.probing.nested import HeldOut, cross_validation, few_labels, held_out, train_and_test
from monai_diffae.latents.probing.probes import FittedProbe, fit_probe, pca_features
from monai_diffae.latents.probing.scores import score_with_interval
from monai_diffae.latents.probing.targets import ProbeTarget, read_probe_target
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

__all__ = [
    "DifferenceInterval",
    "Direction",
    "FittedProbe",
    "HeldOut",
    "LatentStatistics",
    "PermutationTest",
    "PrincipalComponents",
    "ProbeTarget",
    "copying_ratio",
    "cross_validation",
    "difference_interval",
    "energy_distance",
    "few_labels",
    "fit_direction",
    "fit_probe",
    "held_out",
    "mmd",
    "nearest_distances",
    "pca_features",
    "permutation_test",
    "principal_components",
    "read_probe_target",
    "score_with_interval",
    "train_and_test",
]
