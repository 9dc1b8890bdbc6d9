"""What z_sem tells of the labels: probes on a table of embeddings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from monai_diffae.data.embeddings import label_columns, read_embeddings, std_columns, z_columns
from monai_diffae.errors import ConfigError
from monai_diffae.latents.probes import classifier_probe, pca_features, ridge_probe

_TEST_FRACTION = 0.3
_MOST_CLASSES = 10


def probe(
    embeddings: str | os.PathLike[str],
    targets: Sequence[str] | str | None = None,
    *,
    images: ArrayLike | None = None,
    baselines: Mapping[str, ArrayLike] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Probe each target: fitted to the cases of ``train``, judged on those of ``test`` (or ``val`` without any).

    A number with more than 10 values is continuous (ridge regression, R2), all else classes (logistic regression,
    AUROC). Intervals are bootstrapped over the test patients. A table without a column ``split`` is split by the
    patients' hashes, 30% for the test. Of a table pooled with ``mean_std`` both the means and
    the standard deviations are features.

    Args:
        embeddings: ``embeddings.parquet``.
        targets: label columns; all that hold numbers when None.
        images: ``[N, ...]``, one a row of the table: adds PCA of the pixels, of as many dimensions, as a baseline.
        baselines: further features ``[N, D]``, one a row of the table, by name.
        seed: of the bootstrap.

    Returns:
        A row for each target and kind of features: ``target, features, dims, metric, score, low, high, num_train,
        num_test, strength``.

    Raises:
        CohortError: the file is no table of embeddings.
        ConfigError: no such column, or too few cases for a probe.

    Example:
        >>> probe("no.parquet")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: no.parquet: there is no such file; make it with monai-diffae embed
    """
    table = read_embeddings(embeddings)
    labels = label_columns(table)
    wanted = [targets] if isinstance(targets, str) else list(targets or [])
    if not wanted:
        wanted = [name for name in labels if pd.api.types.is_numeric_dtype(table[name]) and table[name].nunique() > 1]
    if not wanted:
        todo = "name one with --target" if labels else "embed a table that has label columns"
        raise ConfigError(f"{Path(embeddings).name}: there is no numeric label column to probe; {todo}")
    for name in wanted:
        if name not in labels:
            raise ConfigError(f"target: there is no label column '{name}'; choose from: {', '.join(labels) or 'none'}")
    train, test = _split(table, Path(embeddings).name)
    codes = table[[*z_columns(table), *std_columns(table)]]
    features: dict[str, NDArray[Any]] = {"z_sem": codes.to_numpy(np.float32).astype(np.float64)}
    if images is not None:
        features["PCA of pixels"] = _pca_of_rows(np.asarray(images), train, len(z_columns(table)))
    for name, values in (baselines or {}).items():
        features[name] = np.asarray(values, np.float64)
    return [
        _row(table, target, name, values, train, test, seed) for target in wanted for name, values in features.items()
    ]


def _split(table: pd.DataFrame, name: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if "split" in table and (table["split"] == "train").any():
        splits = table["split"].to_numpy()
        test = splits == ("test" if (splits == "test").any() else "val")
        if not test.any():
            raise ConfigError(f"{name}: no case is in the split test or val; embed a cohort that has one")
        return splits == "train", test
    if "patient" not in table:
        raise ConfigError(f"{name}: it has neither training cases in a column split nor a column patient")
    place = table["patient"].map(lambda patient: int(patient[:8], 16) / 16**8).to_numpy(np.float64)
    return place >= _TEST_FRACTION, place < _TEST_FRACTION


def _pca_of_rows(images: NDArray[Any], train: NDArray[np.bool_], dims: int) -> NDArray[np.float64]:
    fitted, others = pca_features(images[train], images[~train], dims)
    features = np.empty((len(images), fitted.shape[1]))
    features[train], features[~train] = fitted, others
    return features


def _row(
    table: pd.DataFrame,
    target: str,
    name: str,
    features: NDArray[Any],
    train: NDArray[np.bool_],
    test: NDArray[np.bool_],
    seed: int,
) -> dict[str, Any]:
    values, known = table[target], table[target].notna().to_numpy()
    train, test = train & known, test & known
    is_continuous = pd.api.types.is_numeric_dtype(values) and values.nunique() > _MOST_CLASSES
    if not is_continuous and values.nunique() > 2 * _MOST_CLASSES:
        raise ConfigError(f"target: '{target}' is text of {values.nunique()} different values; choose another")
    y = values.to_numpy(np.float64) if is_continuous else values.astype(str).to_numpy(str)
    groups = table["patient"].to_numpy()[test].tolist() if "patient" in table else None
    run = ridge_probe if is_continuous else classifier_probe
    try:
        result = run(features[train], y[train], features[test], y[test], groups_test=groups, seed=seed)
    except ConfigError as error:
        raise ConfigError(f"target '{target}': {error}") from error
    return {"target": target, "features": name, "dims": features.shape[1], **asdict(result)}
