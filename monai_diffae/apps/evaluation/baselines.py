"""What a probe of z_sem is compared with: further tables of features, and baselines from the pixels."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.apps.embedding.tables import made_with, other_preprocessing, overrides_of, warn_of_another_cohort
from monai_diffae.apps.session import OpenedCohort, open_cohort
from monai_diffae.data.embeddings import std_columns, z_columns
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents.probing.features import INTENSITY_NAME, FeatureSet, intensity_statistics

logger = logging.getLogger(__name__)

FromPixels = Literal["pca", "intensity"]

_MUCH_GIB = 2
_NOT_FEATURES = ("id", "patient", "split", "slices", "patches", "empty_patches")


@dataclass(frozen=True)
class PixelBaselines:
    """Which baselines are to be computed of the pixels, and how these are read.

    Attributes:
        names: ``pca`` (of as many dimensions as z_sem), ``intensity`` (moments and deciles of the pixels).
        bundle: whose preprocessing the images get.
        cohort: where they are.
        columns: what the cohort's table calls our words.
        workers: processes that read.
    """

    names: tuple[FromPixels, ...]
    bundle: str | os.PathLike[str]
    cohort: str | os.PathLike[str]
    columns: Mapping[str, str] = field(default_factory=dict)
    workers: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in get_args(FromPixels)]
        if unknown:
            raise ConfigError(f"baseline: {unknown[0]!r} is not one of {', '.join(get_args(FromPixels))}")

    def open(self, table: pd.DataFrame) -> OpenedCohort:
        """The bundle and its cohort, with the values of the config that the table was made with."""
        overrides = overrides_of(table)
        others = [name for name in made_with(table) if name not in overrides and not name.startswith("inferer#")]
        if others:
            logger.warning(
                "baseline: the table was made with --set %s, which is not taken over; its images may be others",
                ", ".join(others),
            )  # fmt: skip
        return open_cohort(self.bundle, self.cohort, device="cpu", columns=self.columns, overrides=overrides)

    def read(self, table: pd.DataFrame, opened: OpenedCohort, out: Path | None = None) -> list[FeatureSet]:
        """The baselines of a table's cases.

        Args:
            table: of embeddings, a row a case.
            opened: what :meth:`open` gave for it.
            out: a folder for ``probe_failures.csv``, and for the images where they do not fit into memory.

        Raises:
            CohortError: none of the cases is in the cohort, or the table's z_sem are pooled.
            ConfigError: the bundle prepares images otherwise than the one that made the table.
        """
        if "slices" in table:
            raise CohortError(
                "baseline: the table's z_sem are pooled, and the images of a slice each; embed without --pool, or "
                "give the baseline's features as a table"
            )
        if "patches" in table:
            raise CohortError(
                "baseline: the table's z_sem are means over whole scans, and the images their centres; embed without "
                "--patches, or give the baseline's features as a table"
            )
        differ = other_preprocessing(table, opened.trained.config)
        if differ:
            raise ConfigError(
                f"baseline: {Path(self.bundle).resolve().name} prepares images otherwise than the bundle that made the "
                f"table did: {', '.join(differ)}; name that bundle, or give the features as a table"
            )
        warn_of_another_cohort(table, opened.cohort, self.cohort, "baseline")
        with tempfile.TemporaryDirectory() as folder:
            images, there = self._images(_ids(table, "embeddings"), opened, Path(folder) if out is None else out)
        of_names = {
            "pca": lambda: FeatureSet.pca(images, len(z_columns(table)), there),
            "intensity": lambda: FeatureSet.of(INTENSITY_NAME, intensity_statistics(images), there),
        }
        return [of_names[name]() for name in dict.fromkeys(self.names)]

    def _images(
        self, ids: Sequence[str], opened: OpenedCohort, out: Path
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The images ``[N, C, *S]`` that the encoder sees, zeros for those that could not be read; and which could."""
        wanted = set(ids)
        chosen = [case for case in opened.cohort.cases if case.id in wanted]
        if not chosen:
            raise CohortError("baseline: no case of the table is in the cohort; name the one that was embedded")
        cases = opened.read(chosen, out, self.workers, "probe_failures.csv")
        place = {case.id: position for position, case in enumerate(cases.cases)}
        first = cases.dataset[0][opened.encoder_key]
        gib = len(ids) * first.numel() * 4 / 1024**3
        if gib > _MUCH_GIB:
            logger.warning("the images of %d cases take %.1f GiB of memory, and PCA as much again", len(ids), gib)
        images = np.zeros((len(ids), *first.shape), np.float32)
        for row, name in enumerate(ids):
            if name in place:
                images[row] = cases.dataset[place[name]][opened.encoder_key].numpy()
        return images, np.array([name in place for name in ids])


def read_features(name: str, path: str | os.PathLike[str], table: pd.DataFrame, targets: Sequence[str]) -> FeatureSet:
    """Features of a CSV or Parquet table, joined to a table of embeddings by ``id``.

    Of a table of embeddings they are its ``z_000``, ... (and ``std_000``, ...); of any other all columns of numbers
    but ``patient``, ``split`` and the targets.

    Args:
        name: what they are called.
        path: the file.
        table: of embeddings.
        targets: labels that are to be predicted, which are no features.

    Raises:
        CohortError: no such table, no ``id``, an id that is there twice, or none of the table's cases.
        ConfigError: no features, or values that are not finite.
    """
    path = Path(path)
    features = _read(path)
    ids = _ids(features, path.name)
    columns: list[str] = [*z_columns(features), *std_columns(features)]
    if not columns:
        left_out = {*_NOT_FEATURES, *targets}
        columns = [c for c in features.select_dtypes(["number", "bool"]).columns if c not in left_out]
    by_id = features[columns].set_axis(ids, axis=0)
    wanted = _ids(table, "embeddings")
    there = np.isin(np.array(wanted, object).astype(str), np.array(ids, object).astype(str))
    if not there.any():
        raise CohortError(f"{path.name}: it has none of the cases of the embeddings; its column id must name them")
    return FeatureSet.of(name, by_id.reindex(wanted).to_numpy(np.float64), there, columns)


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise CohortError(f"{path.name}: there is no such file of features")
    try:
        if path.suffix.lower() != ".csv":
            return pd.read_parquet(path)
        features = pd.read_csv(path)
        if "id" in features:  # a case may be called NA
            features["id"] = pd.read_csv(path, usecols=["id"], dtype=str, keep_default_na=False)["id"]
        return features
    except Exception as error:  # the readers' errors are of many kinds
        raise CohortError(f"{path.name}: this is neither a CSV nor a Parquet table of features") from error


def _ids(table: pd.DataFrame, name: str) -> list[str]:
    if "id" not in table:
        raise CohortError(f"{name}: it has no column id, by which features are joined to cases")
    ids = table["id"].astype(str)
    if ids.duplicated().any():
        raise CohortError(f"{name}: {int(ids.duplicated().sum())} ids are there more than once; give each case its own")
    return list(ids)
