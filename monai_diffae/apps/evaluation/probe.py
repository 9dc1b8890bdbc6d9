"""What z_sem tells of the labels: probes on a table of embeddings, on patients that they were not fitted to."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from monai_diffae.apps.evaluation.baselines import PixelBaselines, read_features
from monai_diffae.apps.evaluation.probe_report import FILES, write_report
from monai_diffae.apps.results import run_once
from monai_diffae.bundle.checksums import file_checksum
from monai_diffae.data.embeddings import label_columns, read_embeddings, std_columns, z_columns
from monai_diffae.data.progress import shown
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents.probing.features import FeatureSet
from monai_diffae.latents.probing.folds import Evaluation
from monai_diffae.latents.probing.evaluation import Judged, ProbeSettings, judge
from monai_diffae.latents.probing.probes import Probe

logger = logging.getLogger(__name__)


class ProbeRows(list[dict[str, Any]]):
    """The rows of :func:`probe`, and what is not in them.

    Attributes:
        left_out: of the targets that cannot be probed, why.
        num_failed: cases of the table whose images could not be read for a baseline.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], left_out: Mapping[str, str], num_failed: int) -> None:
        super().__init__(rows)
        self.left_out = left_out
        self.num_failed = num_failed


def probe(
    embeddings: str | os.PathLike[str],
    targets: Sequence[str] | str | None = None,
    *,
    evaluation: Evaluation | None = None,
    splits: Sequence[str] = (),
    probes: Sequence[Probe] = ("linear", "knn"),
    images: ArrayLike | None = None,
    baselines: Mapping[str, ArrayLike | os.PathLike[str] | str] | None = None,
    pixels: PixelBaselines | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> ProbeRows:
    """Probe each target with z_sem and with the baselines, on patients that the probe was not fitted to.

    A number with more than 10 values is continuous (ridge regression; R2, MAE), all else classes (logistic regression;
    AUROC, AUPRC, balanced accuracy, Brier score). Intervals are bootstrapped over the judged patients. Of a table
    pooled with ``mean_std`` both the means and the standard deviations are features. All features are judged on the
    same cases: those that have all of them.

    A target that cannot be probed is left out and logged, unless none is left. So are images that cannot be read.

    Args:
        embeddings: ``embeddings.parquet``.
        targets: label columns; all that hold numbers when None.
        evaluation: ``split`` or ``cv``; as the table allows when None: see :class:`ProbeSettings`.
        splits: only the cases of these splits, in cross-validation.
        probes: ``linear``, ``knn``, ``boosting``.
        images: ``[N, ...]``, one a row of the table: adds PCA of the pixels, of as many dimensions, as a baseline.
        baselines: further features by name: ``[N, D]``, one a row of the table, or a table's file with ids.
        pixels: baselines that are computed of the cohort's images.
        out: a folder for ``probes.csv``, ``predictions.parquet``, ``calibration.png``, ``few_labels.csv`` and
            ``few_labels.png``; nothing is written, and no few labels are tried, when None.
        seed: of everything random.
        overwrite: make them anew although there are others.

    Returns:
        A row for each target, kind of features and probe: ``target, features, dims, probe``; the main ``metric`` with
        ``score, low, high``; ``difference, difference_low, difference_high`` (of z_sem's score less this one, paired);
        how it was judged; and each metric as ``auroc, auroc_low, auroc_high``. What does not apply is None.
        ``left_out`` and ``num_failed`` of the list say what is not in it.

    Raises:
        CohortError: a file is no table of embeddings, or no table of features of its cases.
        ConfigError: no such column, or no target can be probed: too few cases, or a patient among both training and
            test cases.

    Example:
        >>> probe("no.parquet")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: no.parquet: there is no such file; make it with monai-diffae embed
    """
    settings = ProbeSettings(evaluation, tuple(splits), tuple(dict.fromkeys(probes)), seed)
    table = read_embeddings(embeddings)
    wanted = _targets(table, targets, Path(embeddings).name)
    given = dict(baselines or {})
    opened = pixels.open(table) if pixels else None

    def judged(folder: Path | None) -> tuple[list[Judged], dict[str, Any]]:
        of_pixels = pixels.read(table, opened, folder) if pixels and opened else []
        sets = [*_features(table, wanted, images, given), *of_pixels]
        names = [features.name for features in sets]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"features: '{name}' are there twice; give one of them another name")
        results, left_out = judge(table, shown(wanted, "probing"), sets, settings, with_few=folder is not None)
        num_failed = int((~of_pixels[0].there).sum()) if of_pixels else 0
        rows = [result.row for result in results]
        return results, {"rows": rows, "left_out": left_out, "num_failed": num_failed}

    if out is None:
        return _said(ProbeRows(**judged(None)[1]))
    folder = Path(out)
    made_from = {
        "embeddings": file_checksum(embeddings), "targets": wanted, **asdict(settings),
        "images": None if images is None else _checksum(images),
        "features": {name: _checksum(values) for name, values in given.items()},
        "pixels": {"baselines": list(pixels.names), **opened.made_from} if pixels and opened else None,
    }  # fmt: skip
    made_from = {key: list(value) if isinstance(value, tuple) else value for key, value in made_from.items()}

    def make() -> dict[str, Any]:
        results, numbers = judged(folder)
        write_report(folder, table, results)
        return numbers

    numbers, _ = run_once(
        folder / "probe.json", [folder / name for name in FILES], made_from, make, overwrite=overwrite
    )
    return _said(ProbeRows(**numbers))


def _said(rows: ProbeRows) -> ProbeRows:
    for target, reason in rows.left_out.items():
        logger.warning("target '%s' is left out: %s", target, reason)
    return rows


def _targets(table: pd.DataFrame, targets: Sequence[str] | str | None, name: str) -> list[str]:
    labels = label_columns(table)
    wanted = [targets] if isinstance(targets, str) else list(dict.fromkeys(targets or []))
    if not wanted:
        wanted = [name for name in labels if pd.api.types.is_numeric_dtype(table[name]) and table[name].nunique() > 1]
    if not wanted:
        todo = "name one with --target" if labels else "embed a table that has label columns"
        raise ConfigError(f"{name}: there is no numeric label column to probe; {todo}")
    for target in wanted:
        if target not in labels:
            raise ConfigError(
                f"target: there is no label column '{target}'; choose from: {', '.join(labels) or 'none'}"
            )
    return wanted


def _features(
    table: pd.DataFrame,
    targets: Sequence[str],
    images: ArrayLike | None,
    baselines: Mapping[str, ArrayLike | os.PathLike[str] | str],
) -> list[FeatureSet]:
    """z_sem first, then what is given beside it."""
    codes = table[[*z_columns(table), *std_columns(table)]].to_numpy(np.float32)
    sets = [FeatureSet.of("z_sem", codes)]
    if images is not None:
        pixels = _rows("images", images, len(table)).astype(np.float32)
        sets.append(FeatureSet.pca(pixels, len(z_columns(table))))
    for name, values in baselines.items():
        if isinstance(values, (str, os.PathLike)):
            sets.append(read_features(name, values, table, targets))
        else:
            sets.append(FeatureSet.of(name, _rows(name, values, len(table))))
    return sets


def _rows(name: str, values: ArrayLike, num_cases: int) -> NDArray[Any]:
    array = np.asarray(values)
    num = len(array) if array.ndim else 0
    if num != num_cases:
        raise ConfigError(f"{name}: there are {num} rows for {num_cases} cases; give one a row of the embeddings")
    return array


def _checksum(values: ArrayLike | os.PathLike[str] | str) -> str:
    if isinstance(values, (str, os.PathLike)):
        if not Path(values).is_file():
            raise CohortError(f"{Path(values).name}: there is no such file of features")
        return file_checksum(values)
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
