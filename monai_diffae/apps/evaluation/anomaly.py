"""The command ``anomaly``: maps of what is unusual inside scans, masks, and calibrated scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from monai_diffae import bundle as bundles
from monai_diffae import metrics, pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.evaluation.calibrate import FAILURES, Calibration, load_calibrated
from monai_diffae.apps.record import remove_images, run_once
from monai_diffae.apps.result import Result, failed_cases
from monai_diffae.apps.settings import NONE_GIVEN, Choice, Columns, Reading, UnbatchedRun
from monai_diffae.bundle.layout import ANOMALY, models_folder
from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.data import cohort_split, scans
    from monai_diffae.data.formats import axes

_UNUSUAL = 0.05
_SCORES = "auroc", "auprc", "dice"  # of voxels


@command
def anomaly(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    quantile: Annotated[float, Ge(0), Le(1)] = 0.99,
    num_pictures: Annotated[int, Ge(1)] = 8,
    choice: Choice = Choice(),
    calibration: Calibration = Calibration(),
    columns: Columns = NONE_GIVEN,
    run: UnbatchedRun = UnbatchedRun(),
) -> Result:
    """Show what is unusual inside scans: maps and masks in the scan's own space, and scores with p-values.

    ``out/maps/<id>.nii.gz`` is how much a voxel differs from what the model expects, in units of the usual difference
    at this voxel (float32). ``out/masks/<id>`` marks the voxels above the quantile with 1 (uint8; 255 in PNG). Both are
    0 outside the model's field of view. With a 2D bundle, too, a volume is one case, unless ``cases`` names slices.

    ``anomaly.csv`` has one row per case, the most unusual first: ``id``, ``score``, ``p_value``, ``mask_voxels`` and
    ``mask_mm3`` (empty for pictures). ``anomaly.png`` shows the most unusual cases.

    Training calibrates a bundle at its end with validation cases; ``calibrate_with`` can use more cases, or normal ones
    only. The calibration is stored in the bundle, in ``models/anomaly.safetensors``, which holds no images: the mean
    squared residual of each voxel, quantiles, and for each case its score, numbers for its scan and patient, and a hash
    of its image. Someone who has a scan can test with the hash whether it was used.

    If cases have masks of their own, such as drawn lesions, these are the reference: ``reference_share`` is the share
    of the field of view that the reference marks; ``auroc`` and ``auprc`` compare the map's voxels with it, and
    ``dice`` those of the written mask. A case whose reference is empty only has ``reference_share``.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        quantile: The mask has the voxels above this quantile of the maps of held-out cases.
        num_pictures: Number of cases in ``anomaly.png``.
        choice: Which cases; those that the bundle was trained on look more normal than new ones.
        columns: Names that the tables use for image, id, patient or split, e.g. ``image=file patient=subject``.

    Returns:
        The folder, ``num_cases``, ``num_unusual`` (with a p-value of at most .05), and ``num_failed``, listed in
        ``failures.csv``. With references that mark voxels also ``num_references``, and the means over these cases of
        ``reference_share``, ``auroc``, ``auprc`` and ``dice``, with the ends of 95% intervals over patients; if other
        references are empty, ``case_auroc`` of the score.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained or not calibrated, or ``out`` holds results
            of other inputs.
        CohortError: there is no usable case, or calibration has no usable cases of two patients.
    """
    session = sessions.Session.open(bundle, cohort, reading=Reading(columns=columns), run=run.batched)
    if choice.cases:
        cases = session.choose(choice)
    else:
        volumes, _ = cohort_split.gather_slices(session.choose(Choice(split=choice.split)), [])
        cases = [cohort_split.whole_scan(slices[0]) for slices in volumes.values()][: choice.limit]
    detector, num_lost = load_calibrated(session, calibration, out)
    checksum = file_checksum(models_folder(bundle) / ANOMALY)
    made_from = session.made_from(
        cases, decodes=False, uses_masks=True, calibration=checksum, quantile=quantile, num_pictures=num_pictures
    )
    results = [out / name for name in ("anomaly.csv", "anomaly.png", "maps", "masks")]

    def make() -> Mapping[str, Any]:
        for folder in results[2:]:
            remove_images(folder)
        opened = session.opened(cases, out, "comparing", named=bool(choice.cases))
        return _AnomalyMaps(session.trained, detector, out, quantile, num_pictures).run(opened)

    figures, skipped = run_once("anomaly", out, results, made_from, make, overwrite=run.overwrite)
    notes = [
        "anomaly.png shows the most unusual cases",
        f"{figures['num_unusual']} of {figures['num_cases']} cases have a p-value of at most .05",
        *_reference_notes(figures),
    ]
    lines = (
        failed_cases(figures["num_failed"], figures["num_cases"]),
        failed_cases(num_lost, len(detector.scores), FAILURES),
    )
    return Result(out, figures, notes, "; ".join(filter(None, lines)) or None, skipped=skipped)


@dataclass
class _AnomalyMaps:
    """Writes the maps, masks, table and picture of cases."""

    trained: bundles.TrainedBundle
    detector: bundles.AnomalyDetector
    folder: Path
    quantile: float
    num_pictures: int
    _shown: list[tuple[float, str, dict[str, torch.Tensor]]] = field(default_factory=list)

    def run(self, cases: sessions.OpenedCases) -> dict[str, Any]:
        """Process whole scans, or single slices."""
        table = pd.DataFrame(self._row(opened) for opened in cases).sort_values("score", ascending=False, kind="stable")
        captions, shown = [each[1] for each in self._shown], [each[2] for each in self._shown]
        draw, trained = pictures.draw_anomalies, self.trained
        write_atomic(
            self.folder / "anomaly.png",
            lambda path: draw(shown, captions, path, trained.model_range, trained.is_colour),
        )
        write_csv(self.folder / "anomaly.csv", table)
        num_unusual = int((table["p_value"] <= _UNUSUAL).sum())
        patients = table["id"].map({case.id: case.patient for case in cases.cases})
        figures = _reference_figures(table.assign(patient=patients))
        return {"num_cases": len(table), "num_unusual": num_unusual, "num_failed": len(cases.failures), **figures}

    def _row(self, opened: bundles.ModelCase) -> dict[str, Any]:
        """Write the map and the mask of a case, and return its row of the table."""
        anomaly, case = self.detector(opened), opened.case
        mask = opened.back_mask(anomaly.mask(self.quantile))
        voxels, mm3, values = int(mask.sum()), None, opened.back_map(anomaly.map)
        opened.write(self.folder / "maps" / f"{case.file_name}.nii.gz", values)
        if opened.scan.lacks_geometry:  # a picture, whose size in mm is not known
            opened.write(self.folder / "masks" / f"{case.file_name}.png", mask * np.uint8(255))
        else:
            opened.write(self.folder / "masks" / f"{case.file_name}.nii.gz", mask)
            mm3 = voxels * math.fabs(float(np.linalg.det(opened.scan.affine[:3, :3])))
        self._shown.append((anomaly.score, f"p {anomaly.p_value:.2g}", self._picture(opened, anomaly)))
        self._shown = sorted(self._shown, key=lambda shown: -shown[0])[: self.num_pictures]
        return {
            "id": case.id,
            "score": anomaly.score,
            "p_value": anomaly.p_value,
            "mask_voxels": voxels,
            "mask_mm3": mm3,
            **_compared(opened, values, mask),
        }

    def _picture(self, opened: bundles.ModelCase, anomaly: bundles.Anomaly) -> dict[str, torch.Tensor]:
        """What the picture shows of a case; of several slices, the one with the map's highest value."""
        index = int(anomaly.map.flatten(1).amax(dim=1).argmax())
        tensors: Mapping[str, torch.Tensor] = {
            "image": opened.images,
            "reconstruction": anomaly.reconstruction,
            "map": anomaly.map,
            "mask": anomaly.mask(self.quantile),
        }
        return {name: tensor[index].cpu() for name, tensor in tensors.items()}


def _compared(opened: bundles.ModelCase, values: npt.NDArray[Any], mask: npt.NDArray[Any]) -> dict[str, float]:
    """The scores of a map and a mask against the case's own mask, within the field of view."""
    if (reference := opened.mask) is None:
        return {}
    native = scans.Scan(np.stack([values[0], mask[0], opened.field]), opened.scan.affine)
    values, mask, field = axes.flattened(native).array
    inside = reference[field > 0]
    scores = metrics.mask_scores(values[field > 0], mask[field > 0] > 0, inside)
    return {"reference_share": float(inside.mean()), **scores}


def _reference_figures(table: pd.DataFrame) -> dict[str, Any]:
    """The scores of all cases against their own masks; nothing if no mask marks a voxel."""
    from monai_diffae.apps.evaluation.quality_tables import mean_interval
    from monai_diffae.latents.probing.scores import score_with_interval

    if "auroc" not in table:
        return {}
    marked, known = table.dropna(subset="auroc"), table.dropna(subset="reference_share")
    scores = {}
    for name in _SCORES:
        low, high = mean_interval(marked[name].to_numpy(), marked["patient"]) or (0.0, 1.0)
        scores[name] = float(marked[name].mean()), low, min(high, 1.0)
    has_lesion = known["reference_share"] > 0
    if not has_lesion.all():
        scores["case_auroc"] = score_with_interval("auroc", has_lesion, known["score"], known["patient"].tolist())
    figures = {"num_references": len(marked), "reference_share": float(marked["reference_share"].mean())}
    for name, ends in scores.items():
        figures |= zip((name, f"{name}_low", f"{name}_high"), ends, strict=True)
    return figures


def _reference_notes(figures: Mapping[str, Any]) -> list[str]:
    """The scores against masks in one line."""
    if "auroc" not in figures:
        return []
    names = {"auroc": "AUROC", "auprc": "AUPRC", "dice": "Dice", "case_auroc": "AUROC of the score for having a lesion"}
    told = [
        f"{text} {figures[name]:.2f} ({figures[f'{name}_low']:.2f} to {figures[f'{name}_high']:.2f}"
        f"{'; {:.2f} by chance'.format(figures['reference_share']) if name == 'auprc' else ''})"
        for name, text in names.items()
        if name in figures
    ]
    return [f"{counted(figures['num_references'], 'case')} with a mask: {', '.join(told)}"]
