"""Computations on z_sem: statistics, directions, components, neighbors and samples. Arrays only."""

from monai_diffae.lazy import attach

MODULES = {
    **dict.fromkeys(("Direction", "fit_direction"), "directions"),
    **dict.fromkeys((
        "Neighbors", "OutlierScores", "ReferenceCases", "copying_ratio", "mmd", "near_pairs", "nearest_distances",
        "nearest_neighbors", "outlier_scores", "p_values",
    ), "neighbors"),
    **dict.fromkeys(("Disentanglement", "dci"), "representation"),
    **dict.fromkeys((
        "ActiveDimensions", "LatentStatistics", "PrincipalComponents", "active_dimensions", "principal_components",
    ), "statistics"),
}  # fmt: skip

__all__ = [*MODULES]

__getattr__ = attach(__name__, MODULES)
