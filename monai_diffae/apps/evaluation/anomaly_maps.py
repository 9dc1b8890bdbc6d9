"""The work of ``anomaly``: each case compared with the held-out ones, its map and mask written, a table, a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from monai_diffae.apps.session import Session
from monai_diffae.bundle import Anomaly, AnomalyDetector, ModelCase
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure, SkippedCases, write_failures
from monai_diffae.data.progress import track
from monai_diffae.data.scans import Scan
from monai_diffae.data.slice_cases import gather_slices, whole_scan
from monai_diffae.data.streamed import log_failure
from monai_diffae.errors import CohortError, ScanError
from monai_diffae.pictures import draw_anomalies

_UNUSUAL = 0.05


@dataclass
class AnomalyMaps:
    """Writes the maps, masks, table and picture of cases.

    Attributes:
        session: the bundle and the cohort.
        detector: the bundle's calibration.
        folder: the folder of the results.
        quantile: which voxels belong to the mask.
        num_pictures: how many cases the picture shows.
    """

    session: Session
    detector: AnomalyDetector
    folder: Path
    quantile: float
    num_pictures: int
    _shown: list[tuple[float, str, dict[str, Tensor]]] = field(default_factory=list)

    def run(self, cases: Sequence[Case], failures: Sequence[Failure]) -> dict[str, int]:
        """Process cases; those that cannot be read are listed in ``failures.csv``.

        Args:
            cases: whole scans, or single slices of volumes.
            failures: scans that are known to be unreadable.

        Returns:
            The number of cases, of unusual ones, and of failed ones.

        Raises:
            CohortError: no case can be read.
        """
        rows: list[dict[str, Any]] = []
        failed = list(failures)
        skipped = SkippedCases("failures.csv")
        for index, case in enumerate(track(cases, f"comparing {len(cases)} cases with held-out ones")):
            try:
                opened = self._open(case)
            except ScanError as error:
                failed.append(log_failure(case.item(), index, "image", error, skipped))
            else:
                rows.append(self._row(case, opened))
        write_failures(self.folder / "failures.csv", failed)
        if not rows:
            raise CohortError(f"all {len(cases)} cases failed, the first is '{failed[0].case_id}': {failed[0].reason}")
        table = pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable")
        captions, pictures = [shown[1] for shown in self._shown], [shown[2] for shown in self._shown]
        model_range = self.session.trained.model_range
        write_atomic(self.folder / "anomaly.png", lambda path: draw_anomalies(pictures, captions, path, model_range))
        write_atomic(self.folder / "anomaly.csv", lambda path: table.to_csv(path, index=False, lineterminator="\n"))
        num_unusual = int((table["p_value"] <= _UNUSUAL).sum())
        return {"num_cases": len(rows), "num_unusual": num_unusual, "num_failed": len(failed)}

    def _open(self, case: Case) -> ModelCase:
        """Open a case and read its images.

        Raises:
            ScanError: the scan cannot be used.
        """
        item = case.item()
        images = {key: item[key] for key in self.session.trained.image_keys}
        return self.session.trained.open(images, slice=case.slice_index, id=case.id)

    def _row(self, case: Case, opened: ModelCase) -> dict[str, Any]:
        """Write the map and the mask of a case, and return its row of the table."""
        anomaly = self.detector(opened)
        mask = opened.back_mask(anomaly.mask(self.quantile))
        opened.write(self.folder / "maps" / f"{case.file_name}.nii.gz", opened.back_map(anomaly.map))
        voxels, mm3 = int(mask.sum()), voxel_mm3(opened.scan)
        if mm3 is None:
            opened.write(self.folder / "masks" / f"{case.file_name}.png", mask * np.uint8(255))
        else:
            opened.write(self.folder / "masks" / f"{case.file_name}.nii.gz", mask)
        self._shown.append((anomaly.score, f"p {anomaly.p_value:.2g}", self._picture(opened, anomaly)))
        self._shown = sorted(self._shown, key=lambda shown: -shown[0])[: self.num_pictures]
        return {
            "id": case.id, "score": anomaly.score, "p_value": anomaly.p_value,
            "mask_voxels": voxels, "mask_mm3": None if mm3 is None else voxels * mm3,
        }  # fmt: skip

    def _picture(self, opened: ModelCase, anomaly: Anomaly) -> dict[str, Tensor]:
        """What the picture shows of a case; of several slices, the one with the map's highest value."""
        index = int(anomaly.map.flatten(1).amax(dim=1).argmax())
        tensors: Mapping[str, Tensor] = {
            "image": opened.images, "reconstruction": anomaly.reconstruction,
            "map": anomaly.map, "mask": anomaly.mask(self.quantile),
        }  # fmt: skip
        return {name: tensor[index].cpu() for name, tensor in tensors.items()}


def whole_scans(cases: Sequence[Case]) -> list[Case]:
    """One case per scan: the slices of a volume become the volume."""
    volumes, _ = gather_slices(cases, [])
    return [whole_scan(slices[0]) for slices in volumes.values()]


def voxel_mm3(scan: Scan) -> float | None:
    """The volume of a voxel in mm^3; None for a picture, whose size in mm is not known.

    Example:
        >>> voxel_mm3(Scan(np.zeros((1, 2, 2, 2), np.float32), np.diag([1.0, 2.0, 3.0, 1.0])))
        6.0
    """
    if scan.lacks_geometry:
        return None
    return math.fabs(float(np.linalg.det(scan.affine[:3, :3])))
