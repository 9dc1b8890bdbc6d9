from monai_diffae.transforms.native import NativeSpace as NativeSpace
from monai_diffae.transforms.native import check_invertible as check_invertible
from monai_diffae.transforms.preprocessing import SmoothForSpacingd as SmoothForSpacingd
from monai_diffae.transforms.preprocessing import ToModelRanged as ToModelRanged
from monai_diffae.transforms.preprocessing import ToRASd as ToRASd
from monai_diffae.transforms.preprocessing import ToRegiond as ToRegiond
from monai_diffae.transforms.preprocessing import ToSpacingd as ToSpacingd
from monai_diffae.transforms.reading import ReadScand as ReadScand
from monai_diffae.transforms.writing import ToScanSpaced as ToScanSpaced
from monai_diffae.transforms.writing import WriteReconstructiond as WriteReconstructiond
from monai_diffae.transforms.writing import WriteScand as WriteScand
from monai_diffae.transforms.writing import write_native as write_native

MODULES: dict[str, str]
__all__: list[str]
