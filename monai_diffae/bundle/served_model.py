"""A trained bundle as a model of MLflow: it answers with z_sem for the files of images.

MLflow loads the bundle with this module (its ``loader_module``), so the model holds no pickled code.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.bundle.loading import TrainedBundle, load_bundle
from monai_diffae.data.scans import scan_suffix

if TYPE_CHECKING:
    import pandas as pd

FILE_NAME = "file_name"


class ServedEncoder:
    """Encodes images to z_sem, one row for each."""

    def __init__(self, trained: TrainedBundle) -> None:
        self.trained = trained

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """The z_sem (N, D) of N images; for a volume in a 2D bundle, the mean over its slices in use.

        Args:
            model_input: N rows: the content of the image's file in a column for each of the bundle's image keys
                (``image``), and in ``file_name`` a name whose ending says how the file is read, such as ``a.nii.gz``.
            params: not used; MLflow gives it.
        """
        rows = [self._encode(row) for row in model_input.to_dict("records")]
        return np.stack(rows).astype(np.float32)

    def _encode(self, row: dict[Any, Any]) -> NDArray[np.float32]:
        suffix = scan_suffix(str(row[FILE_NAME]))
        with tempfile.TemporaryDirectory() as folder:
            files = {key: Path(folder) / f"{key}{suffix}" for key in self.trained.image_keys}
            for key, file in files.items():
                file.write_bytes(row[key])
            z_sem = self.trained.open(files, id="image").z_sem
        return np.asarray(z_sem.mean(dim=0).cpu().numpy())


def _load_pyfunc(path: str) -> ServedEncoder:
    """What MLflow calls with the folder of the bundle."""
    return ServedEncoder(load_bundle(path))
