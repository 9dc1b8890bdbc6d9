"""MONAI dictionary transforms of our own: checked reading, and intensities to the model's range."""

from __future__ import annotations

from monai_diffae.transforms.intensity import ToModelRangeD, ToModelRanged, ToModelRangeDict
from monai_diffae.transforms.reading import ReadScanD, ReadScand, ReadScanDict

__all__ = ["ReadScanD", "ReadScanDict", "ReadScand", "ToModelRangeD", "ToModelRangeDict", "ToModelRanged"]
