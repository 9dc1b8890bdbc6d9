"""The section with the map of z_sem: one point per case, which a script draws on a canvas."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from monai_diffae.apps.report.media import make_once
from monai_diffae.apps.report.outliers import outliers_of
from monai_diffae.apps.report.sections import Section, omitted
from monai_diffae.apps.report.study import Study
from monai_diffae.apps.report.thumbnails import Thumbnails
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.embeddings import label_columns, z_matrix
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.latents.statistics import LatentStatistics

logger = logging.getLogger(__name__)

_MOST_CLASSES, _MOST_NEIGHBOR_CASES, _LEAST_FOR_UMAP = 12, 20_000, 20
_NUM_NEIGHBORS = 5

_BODY = Markup(
    '<div class="map" data-map="{key}"><div class="controls screen-only">'
    '<label>Colour by <select class="colour-by"></select></label>'
    '<label{hidden}>Map <select class="projection"></select></label>'
    '<button type="button" class="zoom-in" aria-label="Zoom in">+</button>'
    '<button type="button" class="zoom-out" aria-label="Zoom out">−</button>'
    '<button type="button" class="reset">Whole map</button>'
    '<label>Find case <input type="search" class="find" list="{key}-ids" size="14"></label>'
    '<datalist id="{key}-ids"></datalist>'
    '</div><div class="plot"><div class="canvas"><canvas class="points" aria-hidden="true"></canvas>'
    '<canvas class="overlay" tabindex="0" role="application" aria-label="{text}"></canvas>'
    '<div class="tip" hidden></div></div><aside class="side" aria-live="polite"></aside></div>'
    '<ul class="legend map-legend"></ul></div>'
    '<script type="application/json" id="{key}-data">{data}</script>'
)


@dataclass(frozen=True)
class Projection:
    """Places of all cases on the map.

    Attributes:
        name: how they were made.
        places: ``[N, 2]``.
        axes: what the two axes are.
    """

    name: str
    places: NDArray[np.float32]
    axes: tuple[str, str]


def map_section(study: Study, thumbnails: Thumbnails) -> Section | None:
    """The map; None without a cohort."""
    if "embeddings" not in study.outcomes:
        return None
    content = omitted(study.outcomes["embeddings"])
    if study.result("embeddings") is not None:
        content = _content(study, thumbnails)
    lead = (
        "Each point is a case, and cases with similar z_sem lie close together. Point at a case to see it. Click it, "
        "or move with the arrow keys, to see its labels and nearest neighbors. Scroll with Ctrl to zoom; drag to move."
    )
    return Section("map", "Map of z_sem", lead, content, study.lines("embeddings"))


def _content(study: Study, thumbnails: Thumbnails) -> Markup:
    projections = [_principal_components(study.table), *_umap(study)]
    data = {
        "ids": study.table["id"].astype(str).tolist(),
        "projections": [{"name": p.name, "axes": p.axes, "places": _packed(p.places)} for p in projections],
        "labels": _labels(study),
        "thumbnails": {**thumbnails.figures(), "places": thumbnails.places},
        "neighbors": _neighbors(study),
        "first": _most_unusual(study),
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    note = Markup()
    if len(thumbnails.ids) < len(study.table):
        note = Markup('<p class="muted small">{:,} of {:,} cases have a thumbnail.</p>').format(
            len(thumbnails.ids), len(study.table)
        )
    body = _BODY.format(
        key=f"map-{study.key}", data=Markup(text), hidden=Markup(" hidden") if len(projections) == 1 else Markup(),  # noqa: S704, JSON without <
        text=f"Map of {len(study.table):,} cases in z_sem; use the arrow keys to go from case to case",
    )  # fmt: skip
    return Markup("{}{}").format(body, note)


def _principal_components(cases: pd.DataFrame) -> Projection:
    """The first two principal components of the training cases' normalised z_sem."""
    from sklearn.decomposition import PCA

    z = z_matrix(cases)
    is_train = cases["split"].eq("train").to_numpy() if "split" in cases else np.ones(len(z), bool)
    fitted = z[is_train] if is_train.sum() > 2 else z
    statistics = LatentStatistics.of(fitted)
    components = PCA(2, random_state=0).fit(statistics.normalise(fitted))
    shares = components.explained_variance_ratio_
    places = components.transform(statistics.normalise(z)).astype(np.float32)
    names = tuple(f"principal component {i} ({share:.0%} of the variance)" for i, share in enumerate(shares, start=1))
    return Projection("PCA", places, (names[0], names[1]))


def _umap(study: Study) -> list[Projection]:
    """UMAP of the normalised z_sem, where it is installed."""
    if find_spec("umap") is None or len(study.table) < _LEAST_FOR_UMAP:
        return []
    file = study.folder / "media" / "umap.csv"

    def make() -> Mapping[str, Any]:
        from umap import UMAP

        z = z_matrix(study.table)
        places = UMAP(random_state=0).fit_transform(LatentStatistics.of(z).normalise(z))
        table = pd.DataFrame({"id": study.table["id"], "x": places[:, 0], "y": places[:, 1]})
        write_atomic(file, lambda temporary: table.to_csv(temporary, index=False, lineterminator="\n"))
        return {"num_cases": len(table)}

    made_from = {"embeddings": file_checksum(study.embeddings)}
    make_once(file.with_suffix(".json"), [file], made_from, make, overwrite=study.overwrite)
    places = pd.read_csv(file)[["x", "y"]].to_numpy(np.float32)
    return [Projection("UMAP", places, ("UMAP 1", "UMAP 2"))]


def _packed(places: NDArray[np.float32]) -> dict[str, Any]:
    """Places as 16-bit integers, in little-endian order, with the range that they stand for."""
    low, high = places.min(axis=0), places.max(axis=0)
    whole = np.round((places - low) / np.maximum(high - low, 1e-12) * 65535).astype("<u2")
    return {"low": low.tolist(), "high": high.tolist(), "values": base64.b64encode(whole.tobytes()).decode()}


def _labels(study: Study) -> dict[str, dict[str, Any]]:
    """Values of all labels by name: classes as codes, numbers as they are; text with many values may name people."""
    names = [*study.labels, *(name for name in label_columns(study.table) if name not in study.labels)]
    columns = {name: study.table[name] for name in names}
    if "split" in study.table:
        columns["split"] = study.table["split"]
    if study.result("neighbors") is not None:
        outliers = pd.read_csv(study.folder / "neighbors" / "outliers.csv", dtype={"id": str}).set_index("id")
        ids = study.table["id"].astype(str)
        columns["outlier score"] = outliers["whitened"].reindex(ids).reset_index(drop=True)
    labels = {name: _label(values) for name, values in columns.items()}
    return {str(name): label for name, label in labels.items() if label is not None}


def _label(values: pd.Series[Any]) -> dict[str, Any] | None:
    """One label for the script; None if it has one value only, or too many classes.

    The script shows numbers with few different values as classes.
    """
    if values.nunique() < 2:
        return None
    if is_numeric_dtype(values) and not is_bool_dtype(values):
        return {"numbers": [None if value != value else float(f"{value:.5g}") for value in values]}
    if values.nunique() > _MOST_CLASSES:
        return None
    codes, classes = pd.factorize(values, sort=True)
    return {"codes": codes.tolist(), "classes": [str(name) for name in classes]}


def _most_unusual(study: Study) -> int | None:
    """The row of the most unusual case, which the map shows first; None if no outliers were searched."""
    if study.result("neighbors") is None:
        return None
    unusual = outliers_of(study)["id"].iloc[0]
    return study.table["id"].astype(str).tolist().index(unusual)


def _neighbors(study: Study) -> list[list[int]]:
    """The nearest cases of each case, as numbers of rows; none for very many cases, so that the page stays small."""
    if study.result("neighbors") is None or len(study.table) > _MOST_NEIGHBOR_CASES:
        return []
    rows = pd.read_csv(
        study.folder / "neighbors" / "neighbors.csv", dtype={"id": str, "neighbor": str}, low_memory=False
    )
    numbers = {name: i for i, name in enumerate(study.table["id"].astype(str))}
    found: list[list[int]] = [[] for _ in numbers]
    for case_id, neighbor in rows.loc[rows["rank"] <= _NUM_NEIGHBORS, ["id", "neighbor"]].itertuples(index=False):
        found[numbers[case_id]].append(numbers[neighbor])
    return found
