"""The data of the map of z_sem: one point per case, which a script draws on a canvas."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from monai_diffae.apps.pages.data import ReportData
from monai_diffae.data.embeddings import label_columns, z_matrix
from monai_diffae.latents.statistics import LatentStatistics

NUM_NEIGHBORS, NUM_OUTLIERS = 5, 12

_MOST_CLASSES, _MOST_NEIGHBOR_CASES = 12, 20_000


def map_data(data: ReportData, thumbnails: Mapping[str, str]) -> dict[str, Any]:
    """What the script shows: places, labels, thumbnails and nearest cases of all cases, as plain values."""
    places, axes = principal_components(data.table)
    unusual = None if data.result("neighbors") is None else outliers(data)["id"].iloc[0]
    ids = data.table["id"].astype(str).tolist()
    shown = {name: thumbnails[name] for name in ids if name in thumbnails}
    return {
        "ids": ids,
        "x": _digits(places[:, 0]),
        "y": _digits(places[:, 1]),
        "axes": axes,
        "labels": _labels(data),
        "thumbnails": shown,
        "neighbors": _neighbors(data),
        "first": None if unusual is None else ids.index(unusual),
    }


def outliers(data: ReportData) -> pd.DataFrame:
    """The most unusual held-out cases, or of all cases if none is held out."""
    rows = data.read("neighbors/outliers.csv")
    held_out = rows[rows["split"] != "train"]
    return (held_out if len(held_out) else rows).sort_values("whitened", ascending=False).head(NUM_OUTLIERS)


def nearest(data: ReportData, folder: str = "neighbors") -> pd.DataFrame:
    """The five nearest cases of each case: the rows of a table that ``neighbors`` wrote."""
    rows = data.read(f"{folder}/neighbors.csv")
    return rows[rows["rank"] <= NUM_NEIGHBORS]


def thumbnail_order(data: ReportData) -> list[str]:
    """All cases: those that sections show first, then held-out ones, in random order."""
    shown: list[str] = data.conflicts["id"].astype(str).tolist()
    if data.result("neighbors") is not None:
        unusual, near = outliers(data)["id"].tolist(), nearest(data)
        shown += unusual + near.loc[near["id"].isin(unusual), "neighbor"].tolist()
    if data.result("samples_neighbors") is not None:
        shown += nearest(data, "samples_neighbors")["neighbor"].tolist()
    ids = data.table["id"].astype(str).tolist()
    split = dict(zip(ids, data.table["split"], strict=True)) if "split" in data.table else {}
    random.Random(0).shuffle(ids)  # noqa: S311, which cases get a thumbnail
    return [*shown, *sorted(ids, key=lambda name: split.get(name) == "train")]


def principal_components(cases: pd.DataFrame) -> tuple[NDArray[np.float32], list[str]]:
    """Places on the first two principal components of the training cases' normalised z_sem, and names of the axes."""
    from sklearn.decomposition import PCA

    z = z_matrix(cases)
    is_train = cases["split"].eq("train").to_numpy() if "split" in cases else np.ones(len(z), bool)
    fitted = z[is_train] if is_train.sum() > 2 else z
    statistics = LatentStatistics.of(fitted)
    components = PCA(2, random_state=0).fit(statistics.normalise(fitted))
    shares = components.explained_variance_ratio_
    places = components.transform(statistics.normalise(z)).astype(np.float32)
    return places, [f"principal component {i} ({share:.0%} of the variance)" for i, share in enumerate(shares, start=1)]


def _digits(values: Any) -> list[float | None]:
    return [None if value != value else float(f"{value:.5g}") for value in values]


def _labels(data: ReportData) -> dict[str, dict[str, Any]]:
    """Values of all labels by name: classes as codes, numbers as they are; text with many values may name people."""
    names = [*data.labels, *(name for name in label_columns(data.table) if name not in data.labels)]
    columns = {name: data.table[name] for name in names}
    if "split" in data.table:
        columns["split"] = data.table["split"]
    if data.result("neighbors") is not None:
        scores = data.read("neighbors/outliers.csv").set_index("id")["whitened"]
        columns["outlier score"] = scores.reindex(data.table["id"].astype(str)).reset_index(drop=True)
    labels = {name: _label(values) for name, values in columns.items()}
    return {str(name): label for name, label in labels.items() if label is not None}


def _label(values: pd.Series[Any]) -> dict[str, Any] | None:
    """One label for the script, which shows few different numbers as classes; None: one value, or too many classes."""
    if values.nunique() < 2:
        return None
    if is_numeric_dtype(values) and not is_bool_dtype(values):
        return {"numbers": _digits(values)}
    if values.nunique() > _MOST_CLASSES:
        return None
    codes, classes = pd.factorize(values, sort=True)
    return {"codes": codes.tolist(), "classes": [str(name) for name in classes]}


def _neighbors(data: ReportData) -> list[list[int]]:
    """The nearest cases of each case, as numbers of rows; none for very many cases, so that the page stays small."""
    if data.result("neighbors") is None or len(data.table) > _MOST_NEIGHBOR_CASES:
        return []
    numbers = {name: i for i, name in enumerate(data.table["id"].astype(str))}
    neighbors: list[list[int]] = [[] for _ in numbers]
    for case_id, neighbor in nearest(data)[["id", "neighbor"]].itertuples(index=False):
        neighbors[numbers[case_id]].append(numbers[neighbor])
    return neighbors
