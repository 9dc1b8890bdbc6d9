"""MONAI dictionary transforms: checked reading, scaling to the model's range, and the way back to the scan."""

from monai_diffae.lazy import attach

MODULES = {
    **dict.fromkeys(("NativeSpace", "check_invertible"), "native"),
    "ReadScand": "reading",
    **dict.fromkeys(("SmoothForSpacingd", "ToModelRanged", "ToRASd", "ToRegiond", "ToSpacingd"), "preprocessing"),
    **dict.fromkeys(("ToScanSpaced", "WriteReconstructiond", "WriteScand", "write_native"), "writing"),
}

__all__ = [*MODULES]

__getattr__ = attach(__name__, MODULES)
