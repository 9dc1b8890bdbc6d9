"""The command ``embed``: encode a cohort to a table of z_sem."""

from __future__ import annotations

import functools
import glob
import logging
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt
from cyclopts import Group, Parameter

from monai_diffae.apps.command import command
from monai_diffae.apps.record import finished, only_run, write_record
from monai_diffae.apps.result import Result, failed_cases
from monai_diffae.apps.settings import Choice, Encoder, Encoding, Process, Reading, Run, colour_values, this_process
from monai_diffae.bundle.config import preprocessing_config
from monai_diffae.bundle.description import versions
from monai_diffae.bundle.layout import model_file
from monai_diffae.data.atomic import PartStore, is_abandoned, remove_abandoned, write_atomic
from monai_diffae.data.cases import are_patients_known, folder_key
from monai_diffae.data.fingerprints import json_digest
from monai_diffae.data.scan_states import scan_states
from monai_diffae.errors import ConfigError
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Colour, Features

with on_first_use:
    from monai_diffae.apps import session as sessions
    from monai_diffae.apps import table_origin
    from monai_diffae.apps.embedding import encoders
    from monai_diffae.apps.embedding import encoding as coding
    from monai_diffae.apps.embedding import tables as table_making
    from monai_diffae.data import cohort_split, embeddings
    from monai_diffae.latents import representation

logger = logging.getLogger(__name__)

Pool = Literal["none", "mean", "mean_std"]

_SUFFIXES = (".parquet", ".csv")
_SUM_DIGITS = 12
_OVERLAP = 0.25


@Parameter(name="*", group=Group("Rows", sort_key=1))
@dataclass(frozen=True)
class Rows:
    """What each row of the table stands for."""

    pool: Pool = "none"
    """``none`` writes one row per slice of volumes in a 2D bundle; ``mean`` and ``mean_std`` one per volume."""
    patches: bool = False
    """Cut scans that are larger than the model's field of view into patches."""
    overlap: Annotated[float, Ge(0), Lt(1)] | None = None
    """Overlap of neighboring patches as a fraction of their size; sets ``patches``; by default 0.25."""


@command
def embed(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    encoding: Encoding = Encoding(),
    features: Features = "z",
    rows: Rows = Rows(),
    map_columns: bool = False,
    part: str | None = None,
    colour: Colour | None = None,
    choice: Choice = Choice(),
    reading: Reading = Reading(),
    run: Run = Run(),
) -> Result:
    """Encode every case to z_sem: a table with one row per case, resumable, for any classifier.

    The columns are ``id``, ``patient`` (a hash; the file ``.patient_key`` beside the table holds its key, and must not
    be published with it), ``split``, the label columns of the cohort, and ``z_000``, ``z_001``, ... as float32. A label
    with one of these names gets the prefix ``label_``. The z_sem of a case does not depend, to the bit, on the other
    cases, their order, ``batch_size`` or ``workers``; on another machine or with another number of threads, the last
    bits may differ.

    With ``pool``, the slices that a 2D bundle takes from a volume become one row with the volume's id and labels:
    ``slices`` (their number), ``z_000``, ... (their mean) and, with ``mean_std``, ``std_000``, ... (their standard
    deviation). A volume with an unreadable slice is skipped.

    With ``patches``, scans are not cropped to the model's field of view but cut into overlapping patches of that size.
    The row of a scan then has the mean z_sem of its patches, ``patches`` (their number), and ``empty_patches``, which
    are entirely background (within 1 % of the model's range above its lowest value) and skipped. A second table,
    ``embeddings_patches.parquet``, has one row per patch: ``id``, ``patient``, ``split``, ``patch`` (its number on the
    scan's grid), ``x_mm``, ``y_mm``, ``z_mm`` (its centre in world coordinates, RAS+; NaN for pictures; for 2D images
    also ``row_px``, ``column_px``) and ``z_000``, ...

    With ``map_columns``, the table also has ``x`` and ``y``, the first two principal components of the training cases'
    z_sem, and ``thumbnail``, a small PNG of each image, for tools that draw maps. The scans are read once more.

    With ``features`` ``wide``, the columns ``w_000`` to ``w_255`` follow: principal components of the features from
    which the encoder's last layer computes z_sem, and of how much patches resemble typical ones
    (:class:`~monai_diffae.networks.PatchWords`).
    ``probe`` often predicts labels better from them; they cannot be decoded. They are fitted to the training cases when
    the cohort of the model's training is embedded in this way, and stored in ``models/wide.safetensors``; other cohorts
    get the same components.

    Another ``encoder`` needs no training: ``untrained`` is the bundle's encoder with random weights, ``pca`` as many
    principal components of the training images' pixels as z_sem would have dimensions, ``words`` those of how much
    patches resemble typical ones (:class:`~monai_diffae.networks.PatchWords`), ``planar`` at most 1024 of the features
    of a frozen 2D network, of volumes for slices along each axis. ``bundle`` may then be a folder made by ``init``, or
    the name of a shipped bundle. ``probe`` and ``neighbors`` take such a table; commands that decode z_sem refuse it.

    z_sem is written in parts, to a hidden folder beside the table, and merged at the end: an interrupted run resumes,
    and retries the cases that failed. Processes of ``torchrun`` share the work, and the first one writes the table. So
    do the jobs of a Slurm array with ``part``; run the command without it when all have ended. The metadata of a
    Parquet table, ``pandas.read_parquet(path).attrs["monai_diffae"]``, and the ``.json`` beside the table record what
    it was made with; the latter is written last, and then says ``complete``.

    Args:
        bundle: Folder of a trained bundle. For other encoders also an untrained one, or the name of a shipped bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan. In a folder, ids are the names of the files; if these
            name patients, use the table of ``list-scans --ids hashed``.
        out: Folder for ``embeddings.parquet``, or the file itself: ``.parquet``, or ``.csv``, which is larger.
        encoding: What encodes the scans.
        features: ``z`` is z_sem alone; ``wide`` adds the encoder's features before its last layer.
        rows: What each row of the table stands for.
        map_columns: Add the columns ``x``, ``y`` and ``thumbnail``, with which other tools draw a map.
        part: Encode this part of the cases only, e.g. ``3/16``, and write no table.
        colour: Colour images: ``refuse`` them, convert them to ``grey``, or encode ``rgb``; by default the bundle's.
        choice: Which cases to encode; by default all. With ``pool``, these are volumes.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The table; ``num_cases``, its rows; ``num_failed``, cases (volumes if their slices are pooled) that failed,
        listed in ``failures``; ``patches``, the table of patches; and ``z_sem_usage``, how much the decoder uses z_sem
        (None: unknown).

    Raises:
        ConfigError: the bundle is not trained, the preprocessing does not end with a crop that patches could replace,
            or ``out`` holds embeddings made from other things.
        CohortError: no usable case.

    Example:
        >>> embed("no_bundle", ".", "../out")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_bundle: there is no models/model.safetensors; train the bundle first, ...
    """
    encoder, pool, patches = encoding.encoder, rows.pool, rows.patches or rows.overlap is not None
    if encoding.weights is not None and encoder != "planar":
        raise ConfigError("weights: are for the encoder planar; omit them, or set encoder to planar")
    if patches and pool != "none":
        raise ConfigError("pool: patches are averaged already; omit pool or patches")
    if map_columns and (patches or pool != "none" or out.suffix.lower() == ".csv"):
        raise ConfigError("map_columns: are for Parquet tables with one row per image; omit them, or pool and patches")
    if features == "wide" and encoder != "trained":
        raise ConfigError(f"features: the encoder {encoder} has no wide features; omit features")
    if encoder == "trained":
        model_file(bundle)  # an error about it comes before anything heavy is imported
    path, process = _table_path(out, cohort, encoder), this_process(part)
    read_as = colour_values(colour)
    if encoder == "trained":  # whose number of channels does not change
        read_as.pop("in_channels", None)
    run = replace(run, device=run.device or process.device, overrides={**read_as, **run.overrides})
    described: dict[str, Any] = {}
    if encoder == "trained":
        session = sessions.Session.open(bundle, cohort, reading=reading, run=run)
    else:
        session, described = encoders.open_baseline(encoding, bundle, cohort, reading=reading, run=run)
    chosen = _chosen(session, choice, pool)
    if map_columns and not chosen.split("train"):
        raise ConfigError("map_columns: are computed from training cases, and none is chosen; omit them, or split")
    if session.split_origin == "drawn":
        chosen = _without_split(chosen)
    facts = [(case.id, case.patient, case.split, case.labels) for case in chosen.cases]
    labels = json_digest(sorted(facts, key=itemgetter(0)))
    made_from = session.made_from(decodes=False, labels=labels, pool=pool, **described)
    made_from["cases"] = json_digest([case.id for case in chosen.cases])  # in the order of the rows
    if map_columns:
        made_from["map_columns"] = True
    if features == "wide":
        session = encoders.fit_or_load(session, may_fit=process.world_size == 1)
        made_from["wide"] = encoders.wide_checksum(bundle)
    files, overlap = {path: made_from}, _OVERLAP if rows.overlap is None else rows.overlap
    if patches:
        files = _patch_tables(path, {**made_from, "overlap": overlap})
    representation.warn_if_unused(session.trained.z_sem_usage)
    tables = _Tables(files, session, chosen, encoder, pool, overlap if patches else None, map_columns)
    done = tables.existing()
    return tables.encode(process, part) if done is None else done


@dataclass(frozen=True)
class _Tables:
    """The tables that a command makes, and from what."""

    files: Mapping[Path, Mapping[str, Any]]  # what each is made from: the scans, and with an overlap their patches
    session: sessions.Session
    chosen: cohort_split.SplitCohort
    encoder: Encoder
    pool: Pool
    overlap: float | None  # of patches
    map_columns: bool

    @property
    def path(self) -> Path:
        """The table of scans."""
        return next(iter(self.files))

    @cached_property
    def states(self) -> list[str]:
        """The state of each case's files."""
        return scan_states(self.chosen.cases)

    def existing(self) -> Result | None:
        """The tables that are complete already."""
        overwrite = self.session.run.overwrite
        complete = [finished("embed", file, [file], each, overwrite=overwrite) for file, each in self.files.items()]
        if (figures := complete[0]) is None or None in complete:
            return None
        table_origin.check_scans(self.path, self.chosen.cases, self.states)
        logger.info("%s is complete; nothing to do (overwrite replaces it)", self.path.name)
        if self.encoder == "trained":
            self.session.warn_if_unlike(embeddings.z_matrix(embeddings.read_embeddings(self.path)))
        return self._result(figures["num_cases"], figures["num_failed"], skipped=True)

    def encode(self, process: Process, part: str | None) -> Result:
        """Encode the cases of this process; the first one waits for the others and writes the tables."""
        path, cases, session = self.path, self.chosen.cases, self.session
        remove_abandoned(path.parent)
        # parts of an interrupted run can be used only by the same run, and only if no scan file was replaced
        key = json_digest([self.files[path], versions(), self.states])
        parts = path.parent / f".{path.stem}-{key[:_SUM_DIGITS]}"  # without a record: left after another run removed it
        store = PartStore(parts, key, id_column="row", process=process.rank, replace=True)
        cutter = None if self.overlap is None else coding.PatchCutter(session.trained, self.overlap)
        cache = None if cutter is not None else session.open_cache(process.rank)
        coder = coding.CohortEncoder(cases, session.trained, store, process, cutter, cache)
        workers = session.reading.workers_for(len(cases), process.local_world_size)
        with only_run(path) if part is None and process.rank == 0 else nullcontext():
            if (done := self.existing()) is not None:  # another run may have ended
                return done
            coder.encode(session.run.batch_size, workers, _failures_file(path).name)
            if part is not None:
                return Result(None, notes=[f"part {part} is encoded; when all are, run the command without --part"])
            if process.rank:  # the first process gathers the parts of this one
                return self._result(0, 0)
            result = self._write(coder.gather())
            for folder in path.parent.glob(glob.escape(f".{path.stem}-") + "[0-9a-f]" * _SUM_DIGITS):
                if folder == parts or is_abandoned(folder):  # a job with other settings may still write its part
                    shutil.rmtree(folder, ignore_errors=True)
            return result

    def _write(self, encoded: coding.EncodedCohort) -> Result:
        """Write the tables, each with its record; a record says that its table is complete, and is written after it."""
        path, cases, session = self.path, self.chosen.cases, self.session
        patient_key = folder_key(path.parent)
        frames, failures = table_making.make_tables(self.chosen, encoded, self.pool, _failures_file(path), patient_key)
        if self.map_columns:
            workers, common_scale = session.reading.workers_for(len(frames[0])), self.encoder in embeddings.COMMON_SCALE
            mapped = table_making.with_map_columns(
                frames[0], cases, session.trained, workers, common_scale=common_scale
            )
            frames = [mapped]
        described = {
            "preprocessing": preprocessing_config(session.trained.config),
            "z_sem_usage": session.trained.z_sem_usage,
            "patient_key": patient_key.name,
            "knows_patients": are_patients_known(cases),
            "z_channels": len(embeddings.z_columns(frames[0])),
        }
        if self.encoder == "trained":
            described["split_origin"] = session.split_origin
            session.warn_if_unlike(embeddings.z_matrix(frames[0]))
        result, scans = (
            self._result(len(frames[0]), len(failures)),
            table_origin.scans_record(self.states, encoded.contents),
        )
        for file, made_from in self.files.items():  # first all, in case the run is killed before the last is written
            write_record("embed", file, made_from)
        for (file, made_from), frame in zip(self.files.items(), frames, strict=True):
            frame.attrs["monai_diffae"] = {"made_from": made_from, **described, "versions": versions()}
            write = frame.to_csv if file.suffix.lower() == ".csv" else frame.to_parquet
            write_atomic(file, functools.partial(write, index=False))
            figures = {**result.figures, **described, "rows": embeddings.rows_sample(frame)}
            write_record("embed", file, made_from, figures, [file], scans=scans)
        return result

    def _result(self, num_cases: int, num_failed: int, *, skipped: bool = False) -> Result:
        path, *others = self.files
        failures = _failures_file(path)
        usage = self.session.trained.z_sem_usage
        figures = {"num_cases": num_cases, "num_failed": num_failed, "z_sem_usage": usage}
        content = {"patches": next(iter(others), None), "failures": failures}
        incomplete = failed_cases(num_failed, num_cases, failures.name)
        return Result(path, figures, [], incomplete, list(map(str, others)), skipped, content)


def _patch_tables(path: Path, made_from: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """The table of scans and that of their patches, with what each is made from."""
    patches = path.with_name(f"{path.stem}_patches{path.suffix}")
    return {path: {**made_from, "pool": "patches"}, patches: {**made_from, "pool": "patch"}}


def _table_path(out: Path, cohort: Path, encoder: Encoder) -> Path:
    """The table's file."""
    if out.suffix.lower() in (".tsv", ".json", ".gz", ".xlsx", ".feather"):
        raise ConfigError(f"{out.name}: tables are .parquet or .csv; choose a file with such a suffix, or a folder")
    name = "embeddings.parquet" if encoder == "trained" else f"embeddings_{encoder}.parquet"
    path = out if out.suffix.lower() in _SUFFIXES else out / name
    if path.resolve() == cohort.resolve():
        raise ConfigError(f"{path.name}: this is the cohort; choose another out")
    others = [file.name for suffix in _SUFFIXES if (file := path.with_suffix(suffix)).exists() and file != path]
    if others and path.with_suffix(".json").exists():
        raise ConfigError(f"{path.name}: would share its record with {others[0]}; choose another out")
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):  # seen only after hours otherwise
        raise ConfigError(f"{path.name}: is a folder, or lies below a file; choose another out")
    return path


def _chosen(session: sessions.Session, choice: Choice, pool: Pool) -> cohort_split.SplitCohort:
    """The cohort with the chosen cases: whole volumes if their slices are pooled."""
    cohort = replace(session.cohort, failures=[] if choice.cases else session.cohort.failures)
    if pool == "none":
        return replace(cohort, cases=session.choose(choice)).with_mask_labels()
    volumes, _ = cohort_split.gather_slices(cohort.cases, [])
    scans = replace(cohort, cases=[cohort_split.whole_scan(slices[0]) for slices in volumes.values()])
    chosen = replace(scans, cases=replace(session, cohort=scans).choose(choice)).with_mask_labels()
    slices = [replace(case, labels=scan.labels) for scan in chosen.cases for case in volumes[scan.id]]
    return replace(cohort, cases=slices)


def _without_split(cohort: cohort_split.SplitCohort) -> cohort_split.SplitCohort:
    return replace(cohort, cases=[replace(case, split=None) for case in cohort.cases])


def _failures_file(path: Path) -> Path:
    """The list of a table's failures; each table has its own, because a folder may hold several tables."""
    return path.with_name("failures.csv" if path.stem == "embeddings" else f"{path.stem}_failures.csv")
