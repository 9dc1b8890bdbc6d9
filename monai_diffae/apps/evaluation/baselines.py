"""The features that ``probe`` uses: z_sem, given tables and arrays, and baselines computed from the pixels."""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from monai_diffae.apps.settings import Comparison, Reading, Run
from monai_diffae.apps.table_origin import preprocessing_differences, safe_overrides, warn_if_cohort_changed
from monai_diffae.data import embeddings as tables
from monai_diffae.data.cohort_split import gather_slices
from monai_diffae.data.fingerprints import digest, file_checksum
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents.probing.probes import INTENSITY_NAME, WIDE_NAME, FeatureSet, intensity_statistics
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Features, PathLike

with on_first_use:
    from monai_diffae.apps import session as sessions

logger = logging.getLogger(__name__)

_LARGE_GIB = 2
_NOT_FEATURES = ("id", "file_name", "patient", "split", "slices", "patches", "empty_patches")


def open_images(table: pd.DataFrame, comparison: Comparison, reading: Reading) -> sessions.Session:
    """The bundle and the cohort, with the configuration values that a table was made with."""
    run = Run(device="cpu", overrides=safe_overrides(table))
    recorded = table.attrs.get("monai_diffae", {}).get("made_from", {}).get("overrides") or {}
    if dropped := [key for key in recorded if key not in run.overrides and not key.startswith("inferer#")]:
        logger.warning(
            "pixel_baselines: the table was made with overrides of %s, which are not applied, so the images may differ "
            "from those that were embedded",
            ", ".join(dropped),
        )
    return sessions.Session.open(comparison.bundle or "", comparison.cohort or "", reading=reading, run=run)


def compared_features(
    comparison: Comparison,
    table: pd.DataFrame,
    baselines: Sequence[FeatureSet],
    session: sessions.Session | None,
    out: Path | None,
) -> tuple[list[FeatureSet], int]:
    """All features that are compared, and for how many cases the images could not be read."""
    pixel_sets = [] if session is None else pixel_features(comparison, table, session, out)
    own = [table_features(table, name) for name in dict.fromkeys(comparison.features)]
    feature_sets = [*own, *baselines, *pixel_sets]
    names = [*dict.fromkeys(comparison.features), *(each.name for each in baselines)]
    names += dict.fromkeys(comparison.pixel_baselines)
    by_name = dict(zip(names, feature_sets, strict=True))
    if unknown := [name for name in comparison.together if name not in by_name]:
        raise ConfigError(f"together: {unknown[0]!r} is not among the features and baselines: {', '.join(by_name)}")
    if comparison.together:
        feature_sets.append(FeatureSet.together([by_name[name] for name in dict.fromkeys(comparison.together)]))
    for used in (names, [each.name for each in feature_sets]):
        if taken := next((name for name in used if used.count(name) > 1), None):
            raise ConfigError(f"baselines: the name {taken!r} is that of other features; rename this one")
    return feature_sets, int((~pixel_sets[0].is_available).sum()) if pixel_sets else 0


def pixel_features(
    comparison: Comparison, table: pd.DataFrame, session: sessions.Session, out: Path | None = None
) -> list[FeatureSet]:
    """Baselines computed from the images that a table of embeddings was made from."""
    if "patches" in table:
        raise ConfigError(
            "pixel_baselines: each z_sem of the table is a mean over patches, while a baseline would see one of them; "
            "embed without patches"
        )
    differ = preprocessing_differences(table, session.trained.config)
    if differ:
        raise ConfigError(
            f"pixel_baselines: the preprocessing of {session.trained.folder.resolve().name} differs from that of the "
            f"table: {', '.join(differ)}; give the bundle that made the table, or give the features as baselines"
        )
    warn_if_cohort_changed(table, session.cohort, comparison.cohort or "", "pixel_baselines")
    ids = tables.case_ids(table, "embeddings")
    with tempfile.TemporaryDirectory() as folder:
        images, values, is_available = _images(ids, session, Path(folder) if out is None else out)
    feature_sets = {
        "pca": lambda: FeatureSet.pca(images, len(tables.z_columns(table)), is_available),
        "intensity": lambda: FeatureSet.from_values(INTENSITY_NAME, values, is_available),
    }
    return [feature_sets[name]() for name in dict.fromkeys(comparison.pixel_baselines)]


def _images(
    ids: Sequence[str], session: sessions.Session, out: Path
) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.bool_]]:
    """The images ``[N, C, *S]`` that the encoder sees, their statistics, and whether each is available; zeros if not.

    Of a volume whose slices were pooled, the means over its usable slices: components of the mean are means of
    components.
    """
    cases, owners = session.cohort.cases, {case.id: case.id for case in session.cohort.cases}
    if not owners.keys() & set(ids):
        volumes, _ = gather_slices(cases, [])
        owners = {case.id: name for name, slices in volumes.items() for case in slices}
    requested = set(ids)
    cases = [case for case in cases if owners[case.id] in requested]
    if not cases:
        raise CohortError("pixel_baselines: no case of the table is in the cohort; give the cohort that was embedded")
    read, key = session.read(cases, out, "probe_failures.csv"), session.encoder_key
    first = read.dataset[0][key]
    gib = len(ids) * first.numel() * 4 / 1024**3
    if gib > _LARGE_GIB:
        logger.warning("the images of %d cases need %.1f GiB of memory, and PCA as much again", len(ids), gib)
    rows, counts = {name: row for row, name in enumerate(ids)}, Counter(owners[case.id] for case in read.cases)
    images = np.zeros((len(ids), *first.shape), np.float32)
    values = np.zeros((len(ids), intensity_statistics(first[None].numpy()).shape[1]))
    for position, case in enumerate(read.cases):
        name, image = owners[case.id], read.dataset[position][key].numpy()
        images[rows[name]] += image / counts[name]
        values[rows[name]] += intensity_statistics(image[None])[0] / counts[name]
    return images, values, np.array([name in counts for name in ids])


def table_features(table: pd.DataFrame, name: Features) -> FeatureSet:
    """The codes of a table, named after their encoder, with standard deviations if it has any; or its wide features."""
    if name == "wide":
        return FeatureSet.from_values(WIDE_NAME, tables.matrix(table, "wide"), standardise=False)
    encoder = tables.encoder_name(table)
    codes = table[[*tables.z_columns(table), *tables.std_columns(table)]].to_numpy(np.float32)
    return FeatureSet.from_values("z_sem" if encoder == "trained" else encoder, codes, standardise=False)


def feature_set(name: str, values: ArrayLike | PathLike, table: pd.DataFrame, targets: Sequence[str]) -> FeatureSet:
    """Features to compare with: a table's file, features ``[N, D]``, or images ``[N, C, *S]``."""
    if isinstance(values, (str, os.PathLike)):
        return read_features(name, values, table, targets)
    array = np.asarray(values)
    num = len(array) if array.ndim else 0
    if num != len(table):
        raise ConfigError(f"{name}: has {num} rows for {len(table)} cases; give one row per row of the embeddings")
    if array.ndim > 2:
        return FeatureSet.pca(array.astype(np.float32), len(tables.z_columns(table)), name=name)
    return FeatureSet.from_values(name, array)


def read_features(name: str, path: PathLike, table: pd.DataFrame, targets: Sequence[str]) -> FeatureSet:
    """Read features from a CSV or Parquet table, and join them to a table of embeddings by ``id``."""
    path = Path(path)
    features = _read_table(path)
    ids = tables.case_ids(features, path.name)
    codes = [*tables.z_columns(features), *tables.std_columns(features)] or tables.wide_columns(features)
    columns = codes  # without labels, which would leak
    if not codes:
        excluded = {*_NOT_FEATURES, *targets}
        columns = [c for c in features.select_dtypes(["number", "bool"]).columns if c not in excluded]
        text = [str(c) for c in features.columns if c not in excluded and c not in columns]
        if text:  # such as numbers with a decimal comma, without which the baseline would be too weak
            logger.warning(
                "%s: columns with text are not used as features: %s; write numbers with a decimal point",
                path.name,
                ", ".join(text)[:100],
            )
    by_id = features[columns].set_axis(ids, axis=0)
    requested = tables.case_ids(table, "embeddings")
    is_available = np.isin(requested, ids)
    if not is_available.any():
        raise CohortError(f"{path.name}: has none of the cases of the embeddings; give their ids in its column id")
    values = by_id.reindex(requested).to_numpy(np.float64)
    return FeatureSet.from_values(name, values, is_available, columns, standardise=not codes)


def checksum_of_features(values: ArrayLike | PathLike) -> str:
    """The SHA-256 of a file or an array."""
    if isinstance(values, (str, os.PathLike)):
        return file_checksum(values)
    return digest(np.asarray(values))


def _read_table(path: Path) -> pd.DataFrame:
    is_csv = path.suffix.lower() == ".csv"
    try:
        features = pd.read_csv(path) if is_csv else pd.read_parquet(path)
        if is_csv and "id" in features:  # a case may be called NA
            features["id"] = pd.read_csv(path, usecols=["id"], dtype=str, keep_default_na=False)["id"]
    except Exception as error:  # the readers raise many kinds of errors
        raise CohortError(f"{path.name}: there is no such CSV or Parquet table; give a table of features") from error
    tables.check_width(features, path)
    if is_csv:
        features.attrs["monai_diffae"] = tables.read_metadata(path)
    return features
