"""Which cases to label next: diverse, typical, unusual or uncertain ones. Arrays only."""

from monai_diffae.latents.selection.coverage import farthest_first, typical_first
from monai_diffae.latents.selection.strategies import STRATEGIES, outlier_order, select
from monai_diffae.latents.selection.uncertainty import uncertainty

__all__ = ["STRATEGIES", "farthest_first", "outlier_order", "select", "typical_first", "uncertainty"]
