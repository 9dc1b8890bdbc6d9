"""MONAI dictionary transforms: checked reading, scaling to the model's range, and the way back to the scan."""

from monai_diffae.transforms.intensity import ToModelRanged
from monai_diffae.transforms.native import NativeSpace, check_invertible
from monai_diffae.transforms.reading import ReadScand
from monai_diffae.transforms.resampling import SmoothForSpacingd, ToRASd, ToSpacingd
from monai_diffae.transforms.scan_space import ToScanSpaced
from monai_diffae.transforms.writing import WriteReconstructiond, WriteScand, write_native

__all__ = [
    "NativeSpace",
    "ReadScand",
    "SmoothForSpacingd",
    "ToModelRanged",
    "ToRASd",
    "ToScanSpaced",
    "ToSpacingd",
    "WriteReconstructiond",
    "WriteScand",
    "check_invertible",
    "write_native",
]
