"""Writing reconstructed images of cases, as a MONAI transform: the command and the bundle's evaluator share it."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple, ensure_tuple_rep
from numpy.typing import NDArray

from monai_diffae.data.cases import Case
from monai_diffae.errors import ConfigError, quoted
from monai_diffae.transforms.case_images import image_suffix, write_case_image, write_image
from monai_diffae.transforms.native import NativeSpace, check_invertible

Grid = Literal["native", "model"]


class WriteReconstructiond(MapTransform):
    """Writes reconstructed images of a case to ``<directory>/<folder>/<file_name>.nii.gz`` or ``.png``.

    With grid ``native``, an image lies in its scan's own space: shape, affine, units and, for NIfTI, data type. With
    grid ``model``, it lies in the model's grid and range. The model sees a field of view only: outside of it, the image
    has the scan's lowest value, and the item gets ``field_share``, the share of the scan's voxels inside.

    Args:
        keys: reconstructed images ``[C, *S]`` of an item, in the model's range. The item's ``id`` names its case.
        directory: the folder for the results; created if missing.
        cases: the cases that items can belong to.
        preprocessing: the bundle's preprocessing, which is inverted for grid ``native``.
        folders: one folder below ``directory`` per key; None: named after the keys.
        grid: ``native`` or ``model``.
        model_range: black and white of the model.
        affine: affine of the model's grid; None: voxels of 1 mm.
        dicom: write DICOM cases also as series, ``<directory>/<folder>/dicom/<file_name>``.
        overwrite: replace existing files.
        allow_missing_keys: ignore keys that an item does not have.

    Raises:
        ConfigError: the preprocessing cannot be inverted, or ``dicom`` is combined with grid ``model``; on call: the
            item's ``id`` is not a case, or the file exists and ``overwrite`` is False.

    Example:
        >>> import tempfile
        >>> from monai.transforms import Compose
        >>> from monai_diffae.data.scans import write_scan
        >>> from monai_diffae.transforms import ReadScand, ToModelRanged
        >>> preprocessing = Compose([ReadScand("image", 2), ToModelRanged("image", method="minmax")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scan = write_scan(Path(folder) / "scan.nii.gz", np.arange(16.0).reshape(1, 4, 4))
        ...     write = WriteReconstructiond("pred", folder, [Case("a", {"image": scan}, "a")], preprocessing)
        ...     _ = write({"pred": torch.zeros(1, 4, 4), "id": "a"})
        ...     print(*os.listdir(Path(folder) / "pred"))
        a.nii.gz
    """

    def __init__(
        self,
        keys: KeysCollection,
        directory: str | os.PathLike[str],
        cases: Sequence[Case],
        preprocessing: Callable[[Any], Any],
        *,
        folders: str | Sequence[str] | None = None,
        grid: Grid = "native",
        model_range: tuple[float, float] = (-1.0, 1.0),
        affine: NDArray[np.float64] | None = None,
        dicom: bool = False,
        overwrite: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if grid not in ("native", "model"):
            raise ConfigError(f"grid: {quoted(grid)} is not one of native, model")
        if dicom and grid == "model":
            raise ConfigError("dicom: DICOM series are written in the scan's own space; use grid native")
        if grid == "native":
            try:
                check_invertible(preprocessing)
            except ConfigError as error:
                raise ConfigError(f"{error}; or use grid model") from error
        names = ensure_tuple(self.keys if folders is None else folders)
        self.folders = [Path(directory) / str(name) for name in ensure_tuple_rep(names, len(self.keys))]
        self.cases = {case.id: case for case in cases}
        self.preprocessing, self.grid = preprocessing, grid
        self.model_range, self.affine = (float(model_range[0]), float(model_range[1])), affine
        self.dicom, self.overwrite = dicom, overwrite

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the item's images; return the item, with grid ``native`` with ``field_share``."""
        item = dict(data)
        case = self.cases.get(str(item.get("id")))
        if case is None:
            raise ConfigError(f"id: '{item.get('id')}' is not a case of the cohort; give the item its case's id")
        native = NativeSpace(self.preprocessing, case.item()) if self.grid == "native" else None
        if native is not None:
            item["field_share"] = float(native.field.mean())
        for key, folder in self.key_iterator(item, self.folders):
            image = torch.as_tensor(item[key]).detach().float().cpu()
            suffix = image_suffix(image.shape, case.file) if native is None else native.suffix
            self._check_new(folder / f"{case.file_name}{suffix}")
            if native is None:
                write_image(folder / case.file_name, image, self.model_range, case.file, self.affine)
            else:
                description = f"monai_diffae reconstruction from {folder.name}" if self.dicom else None
                write_case_image(folder, case.file_name, native, native.back(image), case, description)
        return item

    def _check_new(self, file: Path) -> None:
        if file.exists() and not self.overwrite:
            raise ConfigError(f"{file.name}: exists; set overwrite, or choose another output_dir")


WriteReconstructionD = WriteReconstructionDict = WriteReconstructiond
