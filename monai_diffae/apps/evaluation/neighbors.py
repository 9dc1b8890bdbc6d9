"""The command ``neighbors``: the nearest cases in z_sem, and outlier scores."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae import inferers, latents, pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.record import run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Choice, Decoding, Reading, Run, Seed, UnbatchedRun
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.data.cases import KEY_FILE
from monai_diffae.data.fingerprints import file_checksum, json_digest
from monai_diffae.data.progress import Failure, track, write_failures
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import CohortError, ConfigError, counted
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Features

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.apps import table_origin
    from monai_diffae.bundle import loading
    from monai_diffae.data import embeddings as tables

if TYPE_CHECKING:
    Floats = npt.NDArray[np.float64]

logger = logging.getLogger(__name__)

_SCORES = [("distance", False), ("whitened", True)]
_UNUSUAL = 0.05
_FAILURES = "neighbors_failures.csv"
_IN_PICTURE = 8
_MOST_SCORED_WITH = 20_000  # training cases
_BLOCK = 5_000  # cases that are searched at once; more of them take seconds


@Parameter(name="*", group=Group("Images", sort_key=3))
@dataclass(frozen=True)
class Images:
    """Where the images of the cases are, and what is done with them. Without ``cohort`` no image is read."""

    bundle: Path | None = None
    """Folder of the bundle that made the embeddings; used only with ``cohort``."""
    cohort: Path | None = None
    """The cohort that was embedded: folder, CSV/TSV, MONAI datalist or single scan. Needed for the picture."""
    query_cohort: Path | None = None
    """The cohort of ``queries``; by default ``cohort``."""
    captions: Sequence[str] = ()
    """What ``neighbors.png`` says about a case: ``id`` and names of labels; by default nothing."""
    reconstruction_error: bool = False
    """Also score cases by their reconstruction error; this takes as long as ``reconstruct``."""
    num_reference: Annotated[int, Ge(1)] = 200
    """Training cases that reconstruction errors are compared with."""
    seed: Seed = 0
    """Random seed of the choice of these cases and of the noise for decoding z_sem alone."""


@command
def neighbors(
    embeddings: Path,
    out: Path,
    *,
    k: Annotated[int, Ge(1)] = 5,
    queries: Path | None = None,
    same_patient: bool = False,
    features: Features = "z",
    choice: Choice = Choice(),
    images: Images = Images(),
    decoding: Decoding = Decoding(),
    reading: Reading = Reading(),
    run: UnbatchedRun = UnbatchedRun(),
) -> Result:
    """Find the nearest cases of other patients in z_sem, and score how unusual each case is.

    z_sem is scaled by the standard deviations of the training cases, wide features by one number; distances are
    Euclidean.

    ``out/neighbors.csv`` has one row per case and neighbor: ``id``, ``rank``, ``neighbor``, ``distance``, and the
    labels of both. ``out/outliers.csv`` has one row per case with several scores: ``distance``, the mean distance to
    the k nearest training cases of other patients; ``whitened``, the same after scaling each direction of z_sem by the
    variation of the training cases; and, with ``reconstruction_error``, ``mse_z_sem`` and ``mse_x_T``, the mean squared
    error of the image decoded from z_sem alone, and with the inverted x_T. ``p_distance`` etc. are p-values: about the
    share of training cases with at least as high a score. With ``bundle`` and ``cohort``, ``out/neighbors.png`` shows
    the first 8 cases with their neighbors.

    Args:
        embeddings: Table of embeddings, written by ``embed``, with training cases; neighbors are searched in all of it.
        out: Folder for the results.
        k: Number of neighbors.
        queries: Another table of the same model; its cases are looked up in ``embeddings``.
        same_patient: Also accept neighbors of the same patient, but never the case itself.
        features: Compare z_sem, or the ``wide`` features of tables that ``embed`` made with them.
        decoding: How to invert and decode for the reconstruction errors.

    Returns:
        The folder; ``unusual_shares``, for each score and split the share of cases with a p-value below .05 (of all
        cases for distances, of the selected ones for reconstruction errors); ``num_cases``, selected; and
        ``num_failed``, images that could not be read, listed in ``neighbors_failures.csv``.

    Raises:
        CohortError: there is no table of embeddings, no training case in it, or no case with such an id.
        ConfigError: an argument is out of range, the tables are of different models, a cohort has no bundle, or ``out``
            holds results made from other things.
    """
    if (images.cohort is not None or images.reconstruction_error) and None in (images.bundle, images.cohort):
        raise ConfigError("cohort: its images are read through a bundle; also give bundle and cohort")
    if images.query_cohort is not None and queries is None:  # the picture would show another cohort's images
        raise ConfigError("query_cohort: applies to queries; also give queries, or omit it")
    search = _NeighborSearch.open(embeddings, queries, choice, features, k, same_patient)
    pictures.check_captions(images.captions, tables.label_columns(search.table))
    case_images = None
    if images.cohort is not None:
        files = [embeddings] if queries is None else [embeddings, queries]
        case_images = CaseImages.open(images, out, files, decoding, reading, run.batched)
        case_images.warn_of_differences(search.table, search.cases)
    made_from = {
        "images": None if case_images is None else case_images.made_from,
        "embeddings": file_checksum(embeddings),
        "queries": None if queries is None else file_checksum(queries),
        "cases": json_digest(search.cases["id"].tolist()),
        "captions": list(images.captions),
        "k": k,
        "same_patient": same_patient,
        **({} if features == "z" else {"features": features}),
    }
    make = functools.partial(search.run, out, case_images)
    results = [out / "neighbors.csv", out / "outliers.csv", *([] if case_images is None else [out / "neighbors.png"])]
    figures, skipped = run_once("neighbors", out, results, made_from, make, overwrite=run.overwrite)
    notes = [
        f"{score}: p < .05 for {share:.1%} of {split}"
        for score, shares in figures["unusual_shares"].items()
        for split, share in shares.items()
    ]
    failed = figures["num_failed"]
    incomplete = f"{counted(failed, 'image')} could not be read: see neighbors_failures.csv" if failed else None
    return Result(out, figures, notes, incomplete, skipped=skipped)


@dataclass(frozen=True)
class _NeighborSearch:
    """The selected cases, one a row, and the table that they are looked up in, which may be another one."""

    cases: pd.DataFrame
    table: pd.DataFrame
    training: TrainingCases
    are_queries: bool
    k: int
    same_patient: bool

    @classmethod
    def open(
        cls, embeddings: Path, queries: Path | None, choice: Choice, features: Features, k: int, same_patient: bool
    ) -> _NeighborSearch:
        """Read the tables and select the cases."""
        table = _read(embeddings)
        rows = table if queries is None else _read(queries)
        if queries is not None:
            is_same_kind = len(tables.z_columns(rows)) == len(tables.z_columns(table)) and all(
                (pooled in rows) == (pooled in table) for pooled in ("slices", "patches")
            )
            origins = [table_origin.origin_of(file) for file in (queries, embeddings)]
            has_other_wide = len({origin.get("wide") for origin in origins} - {None}) > 1
            if not is_same_kind or has_other_wide or origins[0]["model"] != origins[1]["model"]:
                raise ConfigError(
                    f"queries: {queries.name} was made with another model, pool or wide features than "
                    f"{embeddings.name}; embed both in the same way"
                )
            recorded = table.attrs.get("monai_diffae", {}).get("preprocessing")
            if differ := table_origin.preprocessing_differences(rows, recorded) if recorded is not None else []:
                logger.warning(
                    "%s and %s were made with different preprocessing (%s), so distances and scores say little; embed "
                    "both in the same way",
                    queries.name,
                    embeddings.name,
                    ", ".join(differ),
                )
            has_patients = "patient" in rows  # synthetic images have none
            if has_patients and not same_patient and tables.patient_key_name(rows) != tables.patient_key_name(table):
                logger.warning(
                    "%s and %s hide their patients with different keys, so neighbors may be of the same patient; copy "
                    "%s from the folder of one to that of the other, and embed that one again with overwrite",
                    queries.name,
                    embeddings.name,
                    KEY_FILE,
                )
        training = TrainingCases.from_rows(tables.training_rows(table), features)
        return cls(_selected(rows, choice), table, training, queries is not None, k, same_patient)

    @property
    def splits(self) -> npt.NDArray[Any]:
        """The split of each selected case; ``queries`` for those of another table."""
        return np.full(len(self.cases), "queries") if self.are_queries else tables.splits_of(self.cases)

    def run(self, out: Path, images: CaseImages | None) -> dict[str, Any]:
        """Write the tables and the picture, and return the figures."""
        neighbors = self.neighbors()
        outliers, shares = self.outliers()
        picture = out / "neighbors.png"
        if images is not None:
            images.draw(picture, neighbors, self.cases, self.table)
            if images.settings.reconstruction_error:
                outliers = self._with_reconstruction_errors(outliers, images)
                for name in ("mse_z_sem", "mse_x_T"):
                    shares[name] = unusual_shares(self.splits, outliers[f"p_{name}"])
            images.write_failures()
        write_csv(out / "neighbors.csv", neighbors)
        write_csv(out / "outliers.csv", outliers)
        figures = {f"{score}_{name}": share for score, each in shares.items() for name, share in each.items()}
        log_to_open_run(figures, [] if images is None else [picture], "neighbors")
        num_failed = 0 if images is None else len(images.failures)
        return {"unusual_shares": shares, "num_cases": len(outliers), "num_failed": num_failed}

    def neighbors(self) -> pd.DataFrame:
        """The table of neighbors: one row per case and neighbor."""
        blocks = [self.cases[start : start + _BLOCK] for start in range(0, len(self.cases), _BLOCK)]
        found = [
            self._neighbors_of(cases) for cases in track(blocks, f"searching neighbors of {len(self.cases)} cases")
        ]
        return pd.concat(found, ignore_index=True)

    def _neighbors_of(self, cases: pd.DataFrame) -> pd.DataFrame:
        table, k, training = self.table, self.k, self.training
        groups = [
            each["id"].to_numpy(str) if self.same_patient else tables.patients_of(each) for each in (cases, table)
        ]
        nearest = latents.nearest_neighbors(training.normalised(cases), training.normalised(table), k, *groups)
        rows = cases.loc[cases.index.repeat(k)].reset_index(drop=True)
        neighbor_rows = table.iloc[nearest.indices.ravel()].reset_index(drop=True)
        result = pd.DataFrame({"id": rows["id"], "rank": np.tile(np.arange(1, k + 1), len(cases))})
        result = result.assign(neighbor=neighbor_rows["id"], distance=nearest.distances.ravel())
        for name in tables.label_columns(table):
            if name in rows:
                result[f"label_{name}" if name in result else name] = rows[name]
            result[f"neighbor_{name}"] = neighbor_rows[name]
        return result

    def outliers(self) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
        """The table of outlier scores by distance, and the share of unusual cases in each split of the whole table."""
        table, cases, k, training = self.table, self.cases, self.k, self.training
        outliers, shares = pd.DataFrame({"id": cases["id"].to_numpy(), "split": self.splits}), {}
        for name, whitened in _SCORES:
            reference = training.distances(training.rows, k, whitened)
            table_scores, table_p = training.scores(table, reference, k, whitened)
            shares[name] = unusual_shares(tables.splits_of(table), table_p)
            if self.are_queries:
                scores = training.distances(cases, k, whitened)
                p = latents.p_values(scores, reference, np.zeros(len(cases), bool))
                shares[name] |= unusual_shares(self.splits, p)
            else:
                scores, p = table_scores[cases.index], table_p[cases.index]
            outliers = outliers.assign(**{name: scores, f"p_{name}": p})
        return outliers, shares

    def _with_reconstruction_errors(self, outliers: pd.DataFrame, images: CaseImages) -> pd.DataFrame:
        """The table of outliers with reconstruction errors and their p-values."""
        settings = images.settings
        reference, ids = _drawn(self.training.rows, settings.num_reference, settings.seed), outliers["id"].tolist()
        if self.are_queries:
            errors = images.reconstruction_errors(images.query_session, ids)
            reference_errors = images.reconstruction_errors(images.table_session, reference)
        else:
            errors = images.reconstruction_errors(images.table_session, [*reference, *ids])
            reference_errors = errors.reindex(reference).dropna()
        is_in_reference = np.isin(ids, reference_errors.index.to_numpy(str)) & (not self.are_queries)
        for name, values in errors.reindex(ids).items():
            scores = values.to_numpy(np.float64)
            p = latents.p_values(scores, reference_errors[name], is_in_reference)
            outliers = outliers.assign(**{str(name): scores, f"p_{name}": p})
        return outliers


def _read(embeddings: Path) -> pd.DataFrame:
    table = tables.read_embeddings(embeddings)
    return table.assign(id=tables.case_ids(table, embeddings.name))


def _selected(rows: pd.DataFrame, choice: Choice) -> pd.DataFrame:
    """The rows with the given ids in their order, else the first ``limit`` of a split."""
    if choice.cases:
        ids: Sequence[str] = list(dict.fromkeys(choice.cases))
        missing = [name for name in ids if name not in set(rows["id"])]
        if missing:
            raise CohortError(f"cases: the table has no case '{missing[0]}'; check the ids in its column id")
        rows = rows.loc[[rows.index[rows["id"] == name][0] for name in ids]]
        choice.check(dict(zip(rows["id"], tables.splits_of(rows), strict=True)))
        return rows
    return (rows if choice.split is None else tables.split_rows(rows, choice.split))[: choice.limit]


@dataclass(frozen=True, eq=False)
class TrainingCases:
    """The training rows of a table, with which all cases are compared, and their features and patients."""

    rows: pd.DataFrame
    reference: latents.ReferenceCases
    features: Features

    @classmethod
    def from_rows(cls, rows: pd.DataFrame, features: Features = "z") -> TrainingCases:
        """The training cases of a table of embeddings, at most 20,000, which are drawn at random."""
        if len(rows) > _MOST_SCORED_WITH:
            logger.info("scores compare with %d of %d training cases", _MOST_SCORED_WITH, len(rows))
            rows = rows[rows["id"].isin(_drawn(rows, _MOST_SCORED_WITH))]
        values, names = tables.matrix(rows, features), _named_after_cases(rows, rows)
        common_scale = tables.has_common_scale(rows, features)
        return cls(rows, latents.ReferenceCases.of(values, names, common_scale=common_scale), features)

    def normalised(self, rows: pd.DataFrame) -> npt.NDArray[np.floating[Any]]:
        """The features (N, D) of any rows, scaled by the standard deviations of the training cases."""
        return self.reference.normalised(tables.matrix(rows, self.features))

    def distances(self, rows: pd.DataFrame, k: int, whitened: bool) -> Floats:
        """The :meth:`~monai_diffae.latents.neighbors.ReferenceCases.distances` (N,) of rows of a table."""
        report = functools.partial(track, text=f"scoring {counted(len(rows), 'case')}")
        return self.reference.distances(tables.matrix(rows, self.features), self.groups_of(rows), k, whitened, report)

    def scores(self, table: pd.DataFrame, reference: Floats, k: int, whitened: bool) -> tuple[Floats, Floats]:
        """The distances of all rows of a table and their p-values, by the ``reference`` distances of the training."""
        by_id = dict(zip(self.rows["id"], reference, strict=True))
        is_train, scores = table["id"].isin(self.rows["id"]).to_numpy(), np.empty(len(table))
        scores[is_train] = [by_id[name] for name in table["id"][is_train]]
        if not is_train.all():
            scores[~is_train] = self.distances(table[~is_train], k, whitened)
        return scores, latents.p_values(scores, reference, is_train)

    def groups_of(self, rows: pd.DataFrame) -> npt.NDArray[np.str_]:
        """The patient (N,) of rows of a table, under the name that it has in ``reference``."""
        return _named_after_cases(rows, self.rows)


def _drawn(rows: pd.DataFrame, count: int, seed: int = 0) -> list[str]:
    """The ids of at most ``count`` random rows; they do not depend on the order of the table."""
    return sorted(rows["id"].astype(str), key=lambda name: seed_of(seed, "reference", name))[:count]


def _named_after_cases(rows: pd.DataFrame, training: pd.DataFrame) -> npt.NDArray[np.str_]:
    """The patient of each case: the first id of its training cases, else its own id."""
    first: dict[str, str] = {}  # it decides which tenth a score leaves out; hashes of patients differ between folders
    for name, patient in sorted(zip(training["id"].astype(str), tables.patients_of(training).tolist(), strict=True)):
        first.setdefault(patient, f"training {name}")
    own = zip(rows["id"].astype(str), tables.patients_of(rows).tolist(), strict=True)
    return np.array([first.get(patient, f"other {name}") for name, patient in own])


def unusual_shares(splits: npt.ArrayLike, p: npt.ArrayLike) -> dict[str, float]:
    """The share of cases with a p-value below .05 in each split; cases without a p-value do not count."""
    p_by_split = pd.Series(np.asarray(p), index=np.asarray(splits, str)).dropna()
    return {str(name): float(share) for name, share in p_by_split.lt(_UNUSUAL).groupby(level=0).mean().items()}


# -- the images behind a table: a picture of neighbors, and reconstruction errors --------------------------------------


@dataclass
class CaseImages:
    """The images of the selected cases and of the table's cases; ``failures`` are the unreadable ones, by id."""

    settings: Images
    query_session: sessions.Session
    table_session: sessions.Session
    folder: Path
    files: Sequence[Path]
    failures: dict[str, Failure] = field(default_factory=dict)

    @classmethod
    def open(
        cls, settings: Images, folder: Path, files: Sequence[Path], decoding: Decoding, reading: Reading, run: Run
    ) -> CaseImages:
        """Open the cohorts with the bundle that made the embeddings, or whose preprocessing another encoder used."""
        bundle = settings.bundle or Path()
        if table_origin.origin_of(files[0])["encoder"] == "trained" or settings.reconstruction_error:
            table_origin.check_same_model(files[0], bundle)
            trained = sessions.open_bundle(bundle, decoding=decoding, run=run)
        else:
            run = replace(
                run, overrides={**table_origin.safe_overrides(tables.read_embeddings(files[0])), **run.overrides}
            )
            trained = loading.load_untrained(bundle, run.device, run.overrides)
        cohorts = [cohort for cohort in (settings.cohort, settings.query_cohort) if cohort is not None]
        opened = [sessions.Session.of(trained, cohort, reading=reading, run=run) for cohort in cohorts]
        return cls(settings, opened[-1], opened[0], folder, files)

    @property
    def made_from(self) -> dict[str, Any]:
        """What the picture and the reconstruction errors depend on, for the record of the results."""
        settings = self.settings
        errors = {"num_reference": settings.num_reference, "seed": settings.seed}
        is_same = self.query_session is self.table_session
        both = [self.table_session] if is_same else [self.table_session, self.query_session]
        return self.table_session.made_from(
            decodes=settings.reconstruction_error,
            query_cohort=self.query_session.cohort.fingerprint,
            scans=[table_origin.content_of_scans(each.cohort.cases, self.files) for each in both],
            reconstruction_error=errors if settings.reconstruction_error else None,
        )

    def warn_of_differences(self, *rows: pd.DataFrame) -> None:
        """Log a warning if the images differ from those that the table, and that of the queries, were made from."""
        both = (self.table_session, self.query_session)
        cohorts = (self.settings.cohort, self.settings.query_cohort or self.settings.cohort)
        for file, table, session, cohort in zip(self.files, rows, both, cohorts, strict=False):
            if differ := table_origin.preprocessing_differences(table, session.trained.config):
                folder = session.trained.folder.resolve().name
                text = "images: the preprocessing of %s differs from that of %s: %s"
                logger.warning(text, folder, file.name, ", ".join(differ))
            table_origin.warn_if_cohort_changed(table, session.cohort, str(cohort), "images")

    def reconstruction_errors(self, session: sessions.Session, ids: Sequence[str]) -> pd.DataFrame:
        """The mean squared error of decoded images in the model's range, one row per case."""
        read = self._read(session, ids)
        trained, errors = session.trained, {}
        network, inferer = trained.network, trained.inferer
        noise = image_noise(trained.x_T_shape, self.settings.seed, [0]).to(trained.device)
        for (case,), *images in read.batches(1, f"decoding {counted(len(read.cases), 'case')}"):
            image, encoder_image = (each.to(trained.device) for each in images)
            z_sem = inferers.encode_exactly(encoder_image, network, inferer)
            _, from_x_T = inferer.round_trip(image, network, z_sem)
            decoded = torch.cat([inferer.decode(z_sem, network, noise), from_x_T])
            errors[case.id] = (decoded - image).square().flatten(1).mean(dim=1).tolist()
        return pd.DataFrame.from_dict(errors, orient="index", columns=["mse_z_sem", "mse_x_T"])

    def draw(self, path: Path, neighbors: pd.DataFrame, cases: pd.DataFrame, table: pd.DataFrame) -> None:
        """Draw the first 8 cases, each in a row with its neighbors and their distances."""
        drawn = neighbors[neighbors["rank"] <= _IN_PICTURE]
        ids = cases["id"].tolist()[:_IN_PICTURE]
        rows_of = dict(iter(drawn[drawn["id"].isin(ids)].groupby("id")))
        names = sorted({name for rows in rows_of.values() for name in rows["neighbor"]})
        case_images, neighbor_images = self._images(self.query_session, ids), self._images(self.table_session, names)
        case_captions, neighbor_captions = self._captions(cases, ids), self._captions(table, names)
        rows = []
        for i, case_id in enumerate(ids):
            cells = [(case_images.get(case_id), f"case {i + 1}{case_captions[case_id]}")]
            for name, distance in rows_of[case_id][["neighbor", "distance"]].itertuples(index=False):
                cells.append((neighbor_images.get(name), f"{distance:.3g}{neighbor_captions[name]}"))
            rows.append(cells)
        write_atomic(path, lambda temporary: pictures.draw_cells(rows, temporary))

    def _captions(self, table: pd.DataFrame, ids: Sequence[str]) -> dict[str, str]:
        """The captions of cases by their ids, each line on a line of its own."""
        names = self.settings.captions
        rows = table[table["id"].isin(ids)].to_dict("records")
        return {
            str(row["id"]): "".join(f"\n{line}" for line in pictures.caption(row, names).splitlines()) for row in rows
        }

    def write_failures(self) -> None:
        """Replace the list of failures, which has those of the last reading, by a list of all unreadable cases."""
        write_failures(self.folder / _FAILURES, list(self.failures.values()))

    def _images(self, session: sessions.Session, ids: Sequence[str]) -> dict[str, torch.Tensor]:
        read = self._read(session, ids)
        return {case.id: session.trained.shown(read.dataset[i]["image"][None]) for i, case in enumerate(read.cases)}

    def _read(self, session: sessions.Session, ids: Sequence[str]) -> sessions.ReadCases:
        """Read cases by their ids; those that cannot be read become failures."""
        listed = {failure.case_id: failure for failure in session.cohort.failures}  # their headers are unreadable
        self.failures.update({name: listed[name] for name in ids if name in listed})
        readable = [name for name in ids if name not in listed]
        if not readable:
            first = listed[ids[0]]
            raise CohortError(f"none of {len(set(ids))} images can be read; the first, '{ids[0]}': {first.reason}")
        read = session.read(session.choose(Choice(cases=readable)), self.folder, _FAILURES, named=True)
        self.failures.update({failure.case_id: failure for failure in read.failures})
        return read
