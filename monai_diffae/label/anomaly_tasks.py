"""The tasks about what is unusual in a scan: ``diffae_anomaly_map`` and ``diffae_anomaly``."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Le

from monai_diffae.apps.command import command
from monai_diffae.label.task import Answer, NativeImage

ANOMALY_LABELS = {"anomalies": 1}  # OHIF computes the colour from the name: amber; "anomaly" is nearly black


@command
def diffae_anomaly_map(request: Any) -> Answer:
    """How unusual each voxel of a scan is, and how unusual the scan is as a whole.

    Args:
        request: a :class:`~monai_diffae.label.task.Request`.

    Returns:
        The map, float32; 0 outside the model's field of view. ``score`` of the scan and its ``p_value`` among held-out
        scans.

    Raises:
        ConfigError: the bundle is not calibrated.
        ScanError: the scan cannot be used.
    """
    case = request.open()
    anomaly = request.served.detector(request.trained)(case)
    figures = {"score": anomaly.score, "p_value": anomaly.p_value}
    return Answer(figures, NativeImage(case, case.back_map(anomaly.map)))


@command
def diffae_anomaly(request: Any, *, quantile: Annotated[float, Ge(0), Le(1)] = 0.99) -> Answer:
    """The unusual voxels of a scan, as a label map.

    Args:
        request: a :class:`~monai_diffae.label.task.Request`.
        quantile: a voxel is marked if it is more unusual than this share of the voxels of held-out scans.

    Returns:
        The label map, uint8: 1 for unusual voxels. ``score`` of the scan and its ``p_value`` among held-out scans.

    Raises:
        ConfigError: the bundle is not calibrated.
        ScanError: the scan cannot be used.
    """
    case = request.open()
    anomaly = request.served.detector(request.trained)(case)
    mask = case.back_mask(anomaly.mask(quantile))
    figures = {"score": anomaly.score, "p_value": anomaly.p_value, "quantile": quantile, "voxels": int(mask.sum())}
    return Answer(figures, NativeImage(case, mask))
