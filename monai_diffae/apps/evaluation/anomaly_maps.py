"""The work of ``anomaly``: each case compared with the held-out ones, its map and mask written, a table, a picture."""

# tested in tests/apps/evaluation/test_anomaly.py

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from monai_diffae.bundle import AnomalyDetector, TrainedBundle
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case
from monai_diffae.data.progress import track
from monai_diffae.data.scans import Scan
from monai_diffae.pictures import draw_anomalies

_UNUSUAL = 0.05


@dataclass
class AnomalyMaps:
    """Writes the maps, masks, table and picture of cases.

    Attributes:
        trained: the bundle.
        detector: the bundle's calibration.
        folder: the folder of the results.
        quantile: which voxels belong to the mask.
        num_pictures: how many cases the picture shows.
    """

    trained: TrainedBundle
    detector: AnomalyDetector
    folder: Path
    quantile: float
    num_pictures: int
    _shown: list[tuple[float, str, dict[str, Tensor]]] = field(default_factory=list)

    def run(self, cases: Sequence[Case]) -> int:
        """Process all cases, and return how many are unusual."""
        rows = [self._case(case) for case in track(cases, f"comparing {len(cases)} cases with held-out ones")]
        table = pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable")
        captions = [caption for _, caption, _ in self._shown]
        pictures = [images for *_, images in self._shown]
        model_range = self.trained.model_range
        write_atomic(self.folder / "anomaly.png", lambda path: draw_anomalies(pictures, captions, path, model_range))
        write_atomic(self.folder / "anomaly.csv", lambda path: table.to_csv(path, index=False, lineterminator="\n"))
        return int((table["p_value"] <= _UNUSUAL).sum())

    def _case(self, case: Case) -> dict[str, Any]:
        """Write the map and the mask of a case, and return its row of the table."""
        item = case.item()
        images = {key: item[key] for key in self.trained.image_keys}
        opened = self.trained.open(images, slice=case.slice_index, id=case.id)
        anomaly = self.detector(opened)
        masks = anomaly.mask(self.quantile)
        opened.write(self.folder / "maps" / f"{case.id}.nii.gz", opened.back_map(anomaly.map), np.float32)
        mask = opened.back_mask(masks)
        voxels, mm3 = int(mask.sum()), voxel_mm3(opened.scan)
        if mm3 is None:
            opened.write(self.folder / "masks" / f"{case.id}.png", mask * np.uint8(255))
        else:
            opened.write(self.folder / "masks" / f"{case.id}.nii.gz", mask)
        tensors = {"image": opened.images, "reconstruction": anomaly.reconstruction, "map": anomaly.map, "mask": masks}
        images_of_case = {name: tensor[0].cpu() for name, tensor in tensors.items()}
        self._shown.append((anomaly.score, f"p {anomaly.p_value:.2g}", images_of_case))
        self._shown = sorted(self._shown, key=lambda shown: -shown[0])[: self.num_pictures]
        return {
            "id": case.id, "score": anomaly.score, "p_value": anomaly.p_value,
            "mask_voxels": voxels, "mask_mm3": None if mm3 is None else voxels * mm3,
        }  # fmt: skip


def voxel_mm3(scan: Scan) -> float | None:
    """The volume of a voxel in mm^3; None for a picture, whose size in mm is not known.

    Example:
        >>> voxel_mm3(Scan(np.zeros((1, 2, 2, 2), np.float32), np.diag([1.0, 2.0, 3.0, 1.0])))
        6.0
    """
    if scan.spatial_dims == 2 and np.array_equal(scan.affine, np.eye(4)):
        return None
    return math.fabs(float(np.linalg.det(scan.affine[:3, :3])))
