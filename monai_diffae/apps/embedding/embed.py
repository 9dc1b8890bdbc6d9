"""The command ``embed``: encode a cohort to a table of z_sem."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Lt

from monai_diffae.apps.command import command
from monai_diffae.apps.result_files import result_hashes
from monai_diffae.apps.results import CommandResult, checksum_of, failed_cases, finished, versions, write_record
from monai_diffae.apps.settings import Reading, Run, Seed
from monai_diffae.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

Pool = Literal["none", "mean", "mean_std"]
Encoder = Literal["trained", "untrained", "pca"]

_SUFFIXES = (".parquet", ".csv")
_MOST_SHOWN = 4  # columns of z_sem in a preview
_OVERLAP = 0.25


@dataclass(frozen=True)
class EmbedResult(CommandResult):
    """The result of :func:`embed`.

    Attributes:
        path: the table, ``embeddings.parquet``, or e.g. ``embeddings_pca.parquet`` for another encoder.
        patches: the table of patches beside it, ``embeddings_patches.parquet``, if scans were cut into patches.
        num_cases: number of rows of ``path``.
        num_failed: number of cases (volumes if their slices are pooled) that failed, listed in ``failures``.
        skipped: whether the table was complete already.
        z_sem_usage: how much the decoder uses z_sem, from the training; None: unknown.
    """

    path: Path
    patches: Path | None = None
    num_cases: int = 0
    num_failed: int = 0
    skipped: bool = False
    z_sem_usage: float | None = None

    @property
    def failures(self) -> Path:
        """``failures.csv`` beside the table, or ``z_failures.csv`` beside a table called ``z.parquet``."""
        return _failures_file(self.path)

    def lines(self) -> Iterator[str]:
        """The tables."""
        yield str(self.path)
        if self.patches is not None:
            yield str(self.patches)

    def figures(self) -> dict[str, Any]:
        """The number of cases, and how much the decoder uses z_sem."""
        return {"num_cases": self.num_cases, "num_failed": self.num_failed, "z_sem_usage": self.z_sem_usage}

    def preview(self) -> pd.DataFrame:
        """The first rows of the table, with a few columns of z_sem."""
        from monai_diffae.data.embeddings import read_embeddings, z_columns

        table = read_embeddings(self.path).head()
        return table.drop(columns=z_columns(table)[_MOST_SHOWN:])

    @property
    def incomplete(self) -> str | None:
        """One line that says how many cases failed; None if none did."""
        return failed_cases(self.num_failed, self.num_cases, self.failures.name)


@command
def embed(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    encoder: Encoder = "trained",
    pool: Pool = "none",
    patches: bool = False,
    overlap: Annotated[float, Ge(0), Lt(1)] | None = None,
    map_columns: bool = False,
    seed: Seed = 0,
    reading: Reading = Reading(),
    run: Run = Run(),
) -> EmbedResult:
    """Encode every case to z_sem: a table with one row per case, resumable, for any classifier.

    The columns are ``id``, ``patient`` (a hash, the same for all cases of a patient; the file ``.patient_key`` beside
    the table holds its key, and must not be published with it), ``split``, the label columns of the cohort, and
    ``z_000``, ``z_001``, ... as float32. A label column with one of these names gets the prefix ``label_``. The z_sem
    of a case does not depend, to the bit, on the other cases, their order, ``batch_size`` or ``workers``. On another
    machine or with another number of threads, the last bits may differ.

    With ``pool``, the slices that a 2D bundle takes from a volume become one row with the volume's id and labels:
    ``slices`` (their number), ``z_000``, ... (their mean) and, with ``mean_std``, ``std_000``, ... (their standard
    deviation). A volume with an unreadable slice is skipped.

    With ``patches``, scans are not cropped to the model's field of view (``image_size`` after resampling) but cut into
    overlapping patches of that size. The row of a scan then has the mean z_sem of its patches, ``patches`` (their
    number), and ``empty_patches``: patches that are entirely background (within 1 % of the model's range above its
    lowest value) are skipped. A second table, ``embeddings_patches.parquet``, has one row per patch: ``id``,
    ``patient``, ``split``, ``patch`` (its number on the scan's grid), ``x_mm``, ``y_mm``, ``z_mm`` (its centre in
    world coordinates, RAS+; for 2D images also ``row_px``, ``column_px``; NaN for pictures, which have no world
    coordinates) and ``z_000``, ...

    With ``map_columns``, the table also has ``x`` and ``y``, the first two principal components of the training cases'
    z_sem, and ``thumbnail``, a small PNG of each image, for tools that draw maps. The scans are read once more.

    With another ``encoder``, nothing needs to be trained: ``untrained`` is the bundle's encoder with random weights,
    ``pca`` as many principal components of the training images' pixels as z_sem would have dimensions (or as many as
    there can be). ``bundle`` may then be a folder made by ``init``, or the name of a shipped bundle. The preprocessing
    is that of the bundle's training. The table, e.g. ``embeddings_pca.parquet``, can be used with ``probe`` and
    ``neighbors``; commands that decode z_sem refuse it.

    Scans are read while others are encoded; none is kept in memory. An interrupted run resumes and retries the cases
    that failed. Several processes started by ``torchrun`` (on one machine, or on several with a common disk) share the
    work: the table is the same, and the first process writes it. The metadata of a Parquet table,
    ``pandas.read_parquet(path).attrs["monai_diffae"]``, and the ``.json`` beside the table record what the table was
    made with.

    Args:
        bundle: Folder of a trained bundle. For other encoders also an untrained one, or the name of a shipped bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan. In a folder, ids are the names of the files; if these
            name patients, use the table of ``list-scans --ids hashed``.
        out: Folder for ``embeddings.parquet``, or the file itself: ``.parquet``, or ``.csv``, which is larger.
        encoder: ``trained``, or an encoder that needs no training: ``untrained`` or ``pca``.
        pool: ``none`` writes one row per slice of volumes in a 2D bundle; ``mean`` and ``mean_std`` one per volume.
        patches: Cut scans that are larger than the model's field of view into patches.
        overlap: Overlap of neighboring patches as a fraction of their size; by default 0.25.
        map_columns: Add the columns ``x``, ``y`` and ``thumbnail``, with which other tools draw a map.
        seed: Random seed of the weights of the encoder ``untrained``.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The table's path and the number of cases.

    Raises:
        ConfigError: the bundle is not trained, there are no slices to pool, the preprocessing does not end with a crop
            that patches could replace, or ``out`` holds embeddings made from other things.
        CohortError: no usable case.

    Example:
        >>> embed("no_bundle", "cohort.csv", "out")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_bundle: there is no models/model.safetensors; train the bundle first, ...
    """
    if patches and pool != "none":
        raise ConfigError("pool: patches are averaged already; omit pool or patches")
    if overlap is not None and not patches:
        raise ConfigError("overlap: applies to patches; set patches too, or omit overlap")
    if map_columns and (patches or pool != "none"):
        raise ConfigError("map_columns: are for tables with one row per image; omit them, or pool and patches")
    if map_columns and out.suffix.lower() == ".csv":
        raise ConfigError("map_columns: a CSV cannot hold thumbnails; choose a .parquet file as out")
    from monai_diffae.apps.embedding.baseline_encoders import open_baseline
    from monai_diffae.apps.embedding.encoding import encode_cohort
    from monai_diffae.apps.embedding.map_columns import with_map_columns
    from monai_diffae.apps.embedding.patches import PatchCutter
    from monai_diffae.apps.embedding.shards import shards_folder
    from monai_diffae.apps.embedding.tables import make_tables
    from monai_diffae.apps.processes import this_process
    from monai_diffae.apps.scans_of_table import check_scans, scans_record
    from monai_diffae.apps.session import Session
    from monai_diffae.bundle.loading import preprocessing_config
    from monai_diffae.data.atomic import remove_abandoned
    from monai_diffae.data.contents import scan_states
    from monai_diffae.data.embeddings import read_embeddings, rows_sample, z_matrix
    from monai_diffae.data.patient_keys import folder_key
    from monai_diffae.latents.representation import warn_if_unused

    path, process = _table_path(out, cohort, encoder), this_process()
    if encoder == "trained":
        session = Session.open(bundle, cohort, reading=reading, run=run, device=process.device)
    else:
        session = open_baseline(encoder, bundle, cohort, reading=reading, run=run, device=process.device, seed=seed)
    cases = session.cohort.cases
    if pool != "none" and all(case.slice_index is None for case in cases):
        raise ConfigError("pool: the bundle does not slice the volumes of this cohort; omit pool")
    overlap = _OVERLAP if overlap is None else overlap
    cutter = PatchCutter(session.trained, session.encoder_key, overlap) if patches else None
    labels = checksum_of(
        sorted(((case.id, case.patient, case.split, case.labels) for case in cases), key=itemgetter(0))
    )
    case_order = checksum_of([case.id for case in cases])  # the rows of the table have the order of the cohort
    made_from = session.made_from(decodes=False, labels=labels, case_order=case_order, pool=pool)
    if encoder != "trained":
        made_from["encoder"] = encoder
    if map_columns:
        made_from["map_columns"] = True
    files = {path: made_from} if cutter is None else _with_patches(path, made_from, overlap)
    patch_table = next((file for file in files if file != path), None)
    usage = session.trained.z_sem_usage
    warn_if_unused(usage)
    figures = _finished(files, run.overwrite)
    states = scan_states(cases)
    if figures is not None:
        check_scans(path, cases, states)
        logger.info("%s is complete; nothing to do (overwrite replaces it)", path.name)
        num_cases, num_failed = figures["num_cases"], figures["num_failed"]
        if encoder == "trained":
            session.warn_if_unlike(z_matrix(read_embeddings(path)))
        return EmbedResult(path, patch_table, num_cases, num_failed, skipped=True, z_sem_usage=usage)
    remove_abandoned(path.parent)
    # shards of an interrupted run can be used only by the same run, and only if no scan file was replaced
    shards_checksum = checksum_of([files[path], versions(), states])
    encoded = encode_cohort(
        cases, session.trained, shards_folder(path, shards_checksum), encoder_key=session.encoder_key, cutter=cutter,
        batch_size=run.batch_size, workers=reading.workers_for(len(cases), process.local_world_size), process=process,
        failures_name=_failures_file(path).name,
    )  # fmt: skip
    if encoded is None:  # the first process gathers the shards of this one
        return EmbedResult(path, patch_table)
    key = folder_key(path.parent)
    tables, failures = make_tables(session.cohort, encoded, pool, _failures_file(path), key)
    if map_columns:
        workers = reading.workers_for(len(tables[0]))
        is_pca = encoder == "pca"
        tables = [with_map_columns(tables[0], cases, session.trained, workers, common_scale=is_pca)]
    described = {
        "preprocessing": preprocessing_config(session.trained.config), "z_sem_usage": usage, "patient_key": key.name
    }  # fmt: skip
    if encoder == "trained":
        described["split_origin"] = session.split_origin
        session.warn_if_unlike(z_matrix(tables[0]))
    _write(dict(zip(files, tables, strict=True)), files, described)
    result = EmbedResult(path, patch_table, len(tables[0]), len(failures), z_sem_usage=usage)
    for (file, file_made_from), table in zip(files.items(), tables, strict=True):
        record, hashes = file.with_suffix(".json"), result_hashes(file.parent, [file])
        figures = {**result.figures(), **described, "rows": rows_sample(table)}
        write_record(record, file_made_from, figures, hashes, scans=scans_record(states, encoded.contents))
    encoded.shards.remove()
    return result


def _table_path(out: Path, cohort: Path, encoder: Encoder) -> Path:
    """The table's file, checked before anything is encoded."""
    if out.suffix.lower() in (".tsv", ".json", ".gz", ".xlsx", ".feather"):
        raise ConfigError(f"{out.name}: tables are .parquet or .csv; choose a file with such a suffix, or a folder")
    name = "embeddings.parquet" if encoder == "trained" else f"embeddings_{encoder}.parquet"
    path = out if out.suffix.lower() in _SUFFIXES else out / name
    same_stem = [file for file in path.parent.glob("*") if file.stem == path.stem and file.suffix.lower() in _SUFFIXES]
    others = [file for file in same_stem if file.name != path.name]
    if path.resolve() == cohort.resolve():
        raise ConfigError(f"{path.name}: this is the cohort; choose another out")
    if others and path.with_suffix(".json").exists():
        raise ConfigError(f"{path.name}: would share its record with {others[0].name}; choose another out")
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
        raise ConfigError(f"{path.name}: is a folder, or lies below a file; choose another out")
    return path


def _failures_file(path: Path) -> Path:
    """The list of a table's failures; each table has its own, because a folder may hold several tables."""
    return path.with_name("failures.csv" if path.stem == "embeddings" else f"{path.stem}_failures.csv")


def _with_patches(path: Path, made_from: dict[str, Any], overlap: float) -> dict[Path, dict[str, Any]]:
    """The files of the tables of scans and of patches, with what each is made from."""
    pools = {path: "patches", path.with_name(f"{path.stem}_patches{path.suffix}"): "patch"}
    return {file: {**made_from, "pool": pool, "overlap": overlap} for file, pool in pools.items()}


def _finished(files: Mapping[Path, dict[str, Any]], overwrite: bool) -> dict[str, Any] | None:
    """The figures of tables that are all complete and made from the same things, else None."""
    figures = [
        finished(file.with_suffix(".json"), [file], made_from, overwrite=overwrite) for file, made_from in files.items()
    ]
    return None if None in figures else figures[0]


def _write(
    tables: Mapping[Path, pd.DataFrame], made_from: Mapping[Path, dict[str, Any]], described: dict[str, Any]
) -> None:
    """Write tables with their metadata, and records that mark the tables as unfinished."""
    from monai_diffae.data.atomic import write_atomic

    for file, table in tables.items():
        table.attrs["monai_diffae"] = {"made_from": made_from[file], **described, "versions": versions()}
        write_record(file.with_suffix(".json"), made_from[file], {})  # in case the run is killed before the end
        write = table.to_csv if file.suffix.lower() == ".csv" else table.to_parquet
        write_atomic(file, functools.partial(write, index=False))
