"""MONAI dictionary transforms: checked reading, scaling to the model's range, and the way back to the scan."""

from __future__ import annotations

from monai_diffae.transforms.grid import ToRASd, ToSpacingd
from monai_diffae.transforms.intensity import ToModelRangeD, ToModelRanged, ToModelRangeDict
from monai_diffae.transforms.native import NativeSpace, check_invertible
from monai_diffae.transforms.native_writing import write_native
from monai_diffae.transforms.reading import ReadScanD, ReadScand, ReadScanDict
from monai_diffae.transforms.reconstructions import (
    WriteReconstructionD,
    WriteReconstructiond,
    WriteReconstructionDict,
)
from monai_diffae.transforms.scan_space import ToScanSpaceD, ToScanSpaced, ToScanSpaceDict
from monai_diffae.transforms.smoothing import SmoothForSpacingD, SmoothForSpacingd, SmoothForSpacingDict
from monai_diffae.transforms.writing import WriteScanD, WriteScand, WriteScanDict

__all__ = [
    "NativeSpace",
    "ReadScanD",
    "ReadScanDict",
    "ReadScand",
    "SmoothForSpacingD",
    "SmoothForSpacingDict",
    "SmoothForSpacingd",
    "ToModelRangeD",
    "ToModelRangeDict",
    "ToModelRanged",
    "ToRASd",
    "ToScanSpaceD",
    "ToScanSpaceDict",
    "ToScanSpaced",
    "ToSpacingd",
    "WriteReconstructionD",
    "WriteReconstructionDict",
    "WriteReconstructiond",
    "WriteScanD",
    "WriteScanDict",
    "WriteScand",
    "check_invertible",
    "write_native",
]
