"""Computations on z_sem: statistics, directions, components, neighbors and samples. Arrays only."""

from monai_diffae.lazy import attach

MODULES = {
    **dict.fromkeys(("PrincipalComponents", "principal_components"), "components"),
    **dict.fromkeys(("Direction", "fit_direction"), "directions"),
    **dict.fromkeys((
        "Neighbors", "OutlierScores", "nearest_neighbors", "outlier_scores", "p_values",
    ), "neighbors"),
    **dict.fromkeys(("Disentanglement", "dci"), "representation"),
    **dict.fromkeys(("ActiveDimensions", "LatentStatistics", "active_dimensions"), "statistics"),
    **dict.fromkeys(("copying_ratio", "mmd", "nearest_distances"), "two_samples"),
}  # fmt: skip

__all__ = [*MODULES]

__getattr__ = attach(__name__, MODULES)
