"""The cases that z_sem calls alike, and those that it calls unlike all training cases."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monai_diffae.apps.embedding.tables import check_made_with, model_of, other_preprocessing, warn_of_another_cohort
from monai_diffae.apps.evaluation.neighbor_images import FAILURES_NAME, CaseImages
from monai_diffae.apps.evaluation.outliers import TrainingCases, patients_of, splits_of, unusual_shares, with_gaps
from monai_diffae.apps.results import checksum_of, log_to_open_run, run_once
from monai_diffae.apps.session import OpenedCohort, check_choice, open_cohort
from monai_diffae.bundle.checksums import file_checksum
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.embeddings import label_columns, read_embeddings, rows_of_split, training_rows, z_columns
from monai_diffae.data.failures import write_failures
from monai_diffae.diffusion.noise import seed_of
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents.neighbors import nearest_neighbours, p_values

logger = logging.getLogger(__name__)

_IN_PICTURE = 8


@dataclass(frozen=True)
class NeighborsResult:
    """What :func:`neighbors` made.

    Attributes:
        folder: with ``neighbors.csv``, ``outliers.csv`` and, with a bundle, ``neighbors.png``.
        unusual: for each score and split, the share of cases with a p-value below .05: by the distances of all
            cases, by the gaps of those that were asked about.
        num_cases: how many were asked about.
        num_failed: images that could not be read, listed in ``neighbors_failures.csv``.
        skipped: whether all was there already.
    """

    folder: Path
    unusual: dict[str, dict[str, float]]
    num_cases: int
    num_failed: int
    skipped: bool = False


@dataclass(frozen=True)
class _Asked:
    """The cases that are asked about, and the table that they are looked up in, which they may be of."""

    rows: pd.DataFrame
    table: pd.DataFrame
    are_of_table: bool

    @property
    def splits(self) -> Any:
        return splits_of(self.rows) if self.are_of_table else np.full(len(self.rows), "queries")


def neighbors(
    embeddings: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    k: int = 5,
    query: Sequence[str] | None = None,
    queries: str | os.PathLike[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    same_patient: bool = False,
    bundle: str | os.PathLike[str] | None = None,
    cohort: str | os.PathLike[str] | None = None,
    query_cohort: str | os.PathLike[str] | None = None,
    gap: bool = False,
    gap_cases: int = 200,
    seed: int = 0,
    workers: int = 0,
    device: str | None = None,
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> NeighborsResult:
    """Find each case's nearest others in z_sem, and say how unusual it is beside the training cases.

    z_sem is measured in the training cases' standard deviations, distances are Euclidean.

    ``out/neighbors.csv`` has a row for each case and neighbour: ``id``, ``rank``, ``neighbour``, ``distance``, and the
    labels of both. ``out/outliers.csv`` has a row a case, with a p-value of each score among the training cases, as
    :func:`~monai_diffae.latents.neighbors.p_values` says: ``distance``, the mean to its k nearest training cases of
    other patients; ``whitened``, the same in units of how these vary in each direction of z_sem; with ``gap`` also
    ``mse_z_sem`` and ``mse_both``, what decoding it gets wrong, from z_sem alone and with its own x_T.
    ``out/neighbors.png`` shows the first 8 cases with their neighbours.

    Args:
        embeddings: ``embeddings.parquet``, with the training cases; neighbours are of the whole table.
        out: the folder for the results.
        k: how many neighbours.
        query: ids of the cases to ask about; None: all.
        queries: another table made with the same model: the cases to ask about, where they are not in ``embeddings``.
        split: ask only about the cases of ``train``, ``val`` or ``test``.
        limit: ask only about so many, the first ones.
        same_patient: let neighbours be of the same patient, too; never the case itself.
        bundle: the model, for the picture and the gap.
        cohort: what ``embeddings`` was made of, for the same.
        query_cohort: what ``queries`` was made of; ``cohort`` when None.
        gap: decode the cases, which takes as long as ``reconstruct``.
        gap_cases: how many training cases the gaps are compared with; drawn by the seed where there are more.
        seed: of that choice, and of the noise that z_sem alone is decoded with.
        workers: processes that read scans.
        device: where to compute; the GPU if there is one when None.
        columns: what the cohorts' tables call our words.
        overwrite: make it anew although it is there.
        overrides: values for keys of the bundle's config, such as ``{"inferer#num_steps": 50}``.

    Raises:
        CohortError: no table of embeddings, no training case in it, or no case of such an id.
        ConfigError: an argument out of range, tables of several models, a bundle without a cohort, or ``out`` holds
            another result.

    Example:
        >>> neighbors("no.parquet", "out")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: no.parquet: there is no such file; make it with monai-diffae embed
    """
    check_choice(split, limit)
    _check_images(bundle, cohort, queries, query_cohort, gap, gap_cases)
    asked = _ask(embeddings, queries, query, split, limit)
    training = TrainingCases.of(training_rows(embeddings))
    folder = Path(out)
    images = None
    if bundle is not None and cohort is not None:
        check_made_with(embeddings, bundle)
        options: dict[str, Any] = {"device": device, "columns": columns, "overrides": overrides}
        opened = open_cohort(bundle, cohort, **options)
        other = opened if query_cohort is None else open_cohort(bundle, query_cohort, **options)
        images = CaseImages(other, opened, folder, workers)
        _warn_of_other_images(asked.table, embeddings, bundle, opened, cohort)
        if queries is not None:
            _warn_of_other_images(asked.rows, queries, bundle, other, query_cohort or cohort)
    made_from = {
        "embeddings": file_checksum(embeddings), "queries": None if queries is None else file_checksum(queries),
        "cases": checksum_of(asked.rows["id"].tolist()), "k": k, "same_patient": same_patient,
        "bundle": None if images is None else images.of_table.made_from,
        "query_cohort": None if images is None else images.of_asked.made_from["cohort"],
        "gap": {"cases": gap_cases, "seed": seed} if gap else None,
    }  # fmt: skip
    table_file, outlier_file, picture = (folder / name for name in ("neighbors.csv", "outliers.csv", "neighbors.png"))

    def make() -> dict[str, Any]:
        near = _nearest(asked, training, k, same_patient)
        outliers, unusual = _outliers(asked, training, k)
        if images is not None:
            first = near[near["id"].isin(asked.rows["id"][:_IN_PICTURE]) & (near["rank"] <= _IN_PICTURE)]
            width = min(k, _IN_PICTURE)
            names, distances = (first[name].to_numpy().reshape(-1, width) for name in ("neighbour", "distance"))
            images.draw(picture, first["id"].unique().tolist(), names, distances)
        if images is not None and gap:
            outliers = _with_gaps(outliers, asked, _reference(training, gap_cases, seed), images, seed)
            for name in ("mse_z_sem", "mse_both"):
                unusual[name] = unusual_shares(asked.splits, outliers[f"p_{name}"])
        failures = [] if images is None else list(images.failures.values())
        write_atomic(table_file, lambda path: near.to_csv(path, index=False, lineterminator="\n"))
        write_atomic(outlier_file, lambda path: outliers.to_csv(path, index=False, lineterminator="\n"))
        if images is not None:
            write_failures(folder / FAILURES_NAME, failures)  # of all that was read, not of the last reading alone
        figures = {f"{score}_{name}": share for score, shares in unusual.items() for name, share in shares.items()}
        log_to_open_run(figures, [] if images is None else [picture], "neighbors")
        return {"unusual": unusual, "num_cases": len(outliers), "num_failed": len(failures)}

    results = [table_file, outlier_file, *([] if images is None else [picture])]
    numbers, skipped = run_once(folder / "neighbors.json", results, made_from, make, overwrite=overwrite)
    return NeighborsResult(folder, numbers["unusual"], numbers["num_cases"], numbers["num_failed"], skipped)


def _ask(
    embeddings: str | os.PathLike[str],
    queries: str | os.PathLike[str] | None,
    query: Sequence[str] | None,
    split: str | None,
    limit: int | None,
) -> _Asked:
    table = _cases_in(embeddings)
    rows = table
    if queries is not None:
        rows = _cases_in(queries)
        is_same_kind = len(z_columns(rows)) == len(z_columns(table)) and all(
            (pooled in rows) == (pooled in table) for pooled in ("slices", "patches")
        )
        if not is_same_kind or model_of(queries) != model_of(embeddings):
            raise ConfigError(f"{Path(queries).name}: made with another model, or another --pool; embed both alike")
    if query:
        missing = sorted(set(query) - set(rows["id"]))
        if missing:
            raise CohortError(f"query: the table has no case '{missing[0]}'; check the ids in its column id")
        rows = rows[rows["id"].isin(query)]
    rows = rows if split is None else rows_of_split(rows, split)
    return _Asked(rows[:limit], table, queries is None)


def _cases_in(embeddings: str | os.PathLike[str]) -> pd.DataFrame:
    table = read_embeddings(embeddings)
    if "id" not in table or table["id"].duplicated().any():
        raise CohortError(f"{Path(embeddings).name}: it has no column id that names each case once; embed again")
    return table.assign(id=table["id"].astype(str))


def _nearest(asked: _Asked, training: TrainingCases, k: int, same_patient: bool) -> pd.DataFrame:
    """The table of neighbours."""
    rows, table = asked.rows, asked.table
    groups = [each["id"].to_numpy(str) if same_patient else patients_of(each) for each in (rows, table)]
    found = nearest_neighbours(training.normalised(rows), training.normalised(table), k, *groups)
    rows = rows.loc[rows.index.repeat(k)].reset_index(drop=True)
    near = table.iloc[found.indices.ravel()].reset_index(drop=True)
    made = pd.DataFrame({"id": rows["id"], "rank": np.tile(np.arange(1, k + 1), len(asked.rows))})
    made = made.assign(neighbour=near["id"], distance=found.distances.ravel())
    for name in label_columns(table):
        if name in rows:
            made[f"label_{name}" if name in made else name] = rows[name]
        made[f"neighbour_{name}"] = near[name]
    return made


def _outliers(asked: _Asked, training: TrainingCases, k: int) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """The table of outliers by their distances, and the shares of unusual cases in each split of the whole table."""
    table, rows = asked.table, asked.rows
    is_train = table.index.isin(training.rows.index)
    outliers, unusual = pd.DataFrame({"id": rows["id"].to_numpy(), "split": asked.splits}), {}
    for name, whitened in {"distance": False, "whitened": True}.items():
        scores = np.empty(len(table))
        scores[is_train] = training.own_distances(k, whitened)
        if not is_train.all():
            scores[~is_train] = training.distances(table[~is_train], k, whitened)
        p = p_values(scores, scores[is_train], is_train)
        unusual[name] = unusual_shares(splits_of(table), p)
        if asked.are_of_table:
            own, p_own = scores[rows.index], p[rows.index]
        else:
            own = training.distances(rows, k, whitened)
            p_own = p_values(own, scores[is_train], np.zeros(len(rows), bool))
            unusual[name] |= unusual_shares(asked.splits, p_own)
        outliers = outliers.assign(**{name: own, f"p_{name}": p_own})
    return outliers, unusual


def _reference(training: TrainingCases, count: int, seed: int) -> list[str]:
    """The training cases that gaps are compared with; one's place depends on neither the order nor the others."""
    return sorted(training.rows["id"].astype(str), key=lambda name: seed_of(seed, "reference", name))[:count]


def _with_gaps(
    outliers: pd.DataFrame, asked: _Asked, reference: list[str], images: CaseImages, seed: int
) -> pd.DataFrame:
    ids = outliers["id"].tolist()
    if asked.are_of_table:
        gaps = images.gaps(images.of_table, [*reference, *ids], seed)
        return with_gaps(outliers, gaps, gaps.reindex(reference).dropna(), True)
    gaps = images.gaps(images.of_asked, ids, seed)
    return with_gaps(outliers, gaps, images.gaps(images.of_table, reference, seed), False)


def _warn_of_other_images(
    table: pd.DataFrame,
    embeddings: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    opened: OpenedCohort,
    cohort: str | os.PathLike[str],
) -> None:
    """Say in a line each in what the images that are read may not be those that the table was made of."""
    differ = other_preprocessing(table, opened.trained.config)
    if differ:
        logger.warning(
            "images: %s prepares them otherwise than when %s was made: %s",
            Path(bundle).resolve().name, Path(embeddings).name, ", ".join(differ),
        )  # fmt: skip
    warn_of_another_cohort(table, opened.cohort, cohort, "images")


def _check_images(
    bundle: object, cohort: object, queries: object, query_cohort: object, gap: bool, gap_cases: int
) -> None:
    if (bundle is None) != (cohort is None):
        lacks, there = ("bundle", "cohort") if bundle is None else ("cohort", "bundle")
        raise ConfigError(f"{there}: say --{lacks}, too: the images are read with both")
    if gap and bundle is None:
        raise ConfigError("gap: say --bundle and --cohort, too: the cases are decoded")
    if query_cohort is not None and (queries is None or bundle is None):
        raise ConfigError("query_cohort: say --queries, --bundle and --cohort, too, or leave it out")
    if gap_cases < 1:
        raise ConfigError(f"gap_cases: {gap_cases} is below 1")
