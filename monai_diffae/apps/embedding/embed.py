"""A cohort to a table of z_sem."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch

from monai_diffae.apps.embedding.encoding import encode_cohort
from monai_diffae.apps.embedding.patches import PatchCutter
from monai_diffae.apps.embedding.shards import parts_folder, this_process
from monai_diffae.apps.embedding.tables import gathered, preprocessing_of
from monai_diffae.apps.results import checksum_of, finished, versions, write_record
from monai_diffae.apps.session import read_split_cohort
from monai_diffae.bundle.checksums import checksum, config_checksum
from monai_diffae.bundle.loading import open_bundle
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case
from monai_diffae.data.formats.dicom import split_series
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)

Pool = Literal["none", "mean", "mean_std"]

_SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class EmbedResult:
    """What :func:`embed` made.

    Attributes:
        path: ``embeddings.parquet``.
        patches: ``embeddings_patches.parquet`` beside it, if scans were cut into patches.
        num_cases: the rows of ``path``.
        num_failed: cases (volumes where these are pooled) that could not be used, listed in ``failures``.
        skipped: whether it was there already.
    """

    path: Path
    patches: Path | None = None
    num_cases: int = 0
    num_failed: int = 0
    skipped: bool = False

    @property
    def failures(self) -> Path:
        """``failures.csv`` beside it; of a table of another name, such as ``z.parquet``, ``z_failures.csv``."""
        return _failures_of(self.path)


def embed(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    pool: Pool = "none",
    patches: bool = False,
    overlap: float | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    device: str | torch.device | None = None,
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> EmbedResult:
    """Encode every case of a cohort and write ``embeddings.parquet``.

    Its columns are ``id``, ``patient`` (the first 16 digits of a SHA-256: equal for equal patients; names or short
    numbers can be found from it by trying), ``split``, the cohort's label columns, and ``z_000``, ``z_001``, ...
    float32. A label column of one of these names gets ``label_`` before it. A z_sem does not depend on the other
    cases, their order, ``batch_size`` or ``workers``, to the bit; other machines or threads may change the last bits.

    With ``pool`` the slices that a 2D bundle takes of a volume make one row, with the volume's id and labels:
    ``slices`` (how many), ``z_000``, ... their mean, and with ``mean_std`` their standard deviation as ``std_000``, ...
    A volume of which one slice fails is left out.

    With ``patches`` scans are not cropped to the model's field (after resampling, ``image_size``) but cut into
    overlapping patches of it. A scan's row then has the mean z_sem of its patches and ``patches``, how many they are;
    those of background alone (within 1 % of the model's range above its lowest value) are left out, and counted as
    ``empty_patches``. Beside it, ``embeddings_patches.parquet`` has a row a patch: ``id``, ``patient``, ``split``,
    ``patch`` (its number on the scan's grid), ``x_mm``, ``y_mm``, ``z_mm`` (its centre in the scan's world, RAS+; of
    2D images also ``row_px``, ``column_px``, and NaN mm for pictures, which lie nowhere) and ``z_000``, ...

    Scans are read while others are encoded, and none is kept. A run that was killed goes on, tries again what had
    failed, and several processes that ``torchrun`` starts (on several machines with a common disk) share the work: the
    table is the same, and the first process writes it. A Parquet table's metadata,
    ``pandas.read_parquet(path).attrs["monai_diffae"]``, say what it was made with: the model's checksum, the
    preprocessing and versions; the ``.json`` beside the table has the first and the last, too.

    Args:
        bundle: a trained bundle's folder.
        cohort: a folder, table, datalist or scan.
        out: a folder, or the file itself: ``.parquet``, or ``.csv``, which takes more room.
        pool: ``none``: a row a slice; ``mean`` or ``mean_std``: a row a volume.
        patches: cut scans into patches instead of cropping them to the model's field.
        overlap: of neighbouring patches, the share along each axis, 0 to less than 1; None: a quarter.
        batch_size: images that are held on the device at once (a few more where the encoder takes more at once).
        workers: processes that read and preprocess ahead; 0 does it in this one; None: one a core, at most 8, for 256
            cases or more.
        device: where to compute; the GPU if there is one when None.
        columns: what the cohort's table calls our words, such as ``{"image": "file"}``.
        overwrite: make it anew although it is there.
        overrides: values for keys of the bundle's config, such as ``{"slice_step": 1}``.

    Raises:
        ConfigError: no trained bundle, no slices to pool, a preprocessing that does not end with a crop that patches
            could replace, or ``out`` holds embeddings of another model or cohort.
        CohortError: no usable case.

    Example:
        >>> embed("no_bundle", "cohort.csv", "out")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_bundle: there is no models/model.pt; train the bundle first
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: {batch_size} is below 1")
    if pool not in get_args(Pool):
        raise ConfigError(f"pool: {pool!r} is not one of {', '.join(get_args(Pool))}")
    if patches and pool != "none":
        raise ConfigError("pool: the z_sem of patches are averaged anyway; leave it out, or leave out patches")
    if overlap is not None and not patches:
        raise ConfigError("overlap: is of patches; say patches, too, or leave it out")
    if workers is not None and workers < 0:
        raise ConfigError(f"workers: {workers} is below 0")
    path = _table_path(Path(out), Path(cohort))
    model, process = checksum(bundle), this_process()
    trained = open_bundle(bundle, device or process.device, overrides)
    split, encoder_key = read_split_cohort(bundle, trained, cohort, columns, overrides)
    if pool != "none" and all(case.slice_index is None for case in split.cases):
        raise ConfigError("pool: the bundle takes no volume of this cohort apart into slices; leave it out")
    overlap = 0.25 if overlap is None else overlap
    cutter = PatchCutter(trained, encoder_key, overlap) if patches else None
    labels = checksum_of([(case.id, case.patient, case.split, case.labels) for case in split.cases])
    made_from = {
        "model": model, "config": config_checksum(bundle), "cohort": split.fingerprint, "labels": labels, "pool": pool,
        "overrides": dict(overrides or {}),
    }  # fmt: skip
    files = {path: made_from} if cutter is None else _with_patches(path, made_from, overlap)
    of_patches = next((file for file in files if file != path), None)
    done = _finished(files, overwrite)
    if done is not None:
        logger.info("%s is complete; nothing to do (--overwrite makes it anew)", path.name)
        return EmbedResult(path, of_patches, done["num_cases"], done["num_failed"], skipped=True)
    # the parts of a run that was killed are of use to the same one only, as long as no file is written anew
    parts_of = checksum_of([files[path], versions(), _written_at(split.cases)])
    encoded = encode_cohort(
        split.cases, trained, parts_folder(path, parts_of), encoder_key=encoder_key, cutter=cutter,
        batch_size=batch_size, workers=workers, process=process,
    )  # fmt: skip
    if encoded is None:  # the first process gathers what this one has made
        return EmbedResult(path, of_patches)
    tables, failures = gathered(split, encoded, pool, _failures_of(path))
    _write(dict(zip(files, tables, strict=True)), files, trained.config)
    result = EmbedResult(path, of_patches, len(tables[0]), len(failures))
    for file, made in files.items():
        numbers = {"num_cases": result.num_cases, "num_failed": result.num_failed}
        write_record(file.with_suffix(".json"), made, numbers)
    encoded.parts.remove()
    return result


def _table_path(out: Path, cohort: Path) -> Path:
    """The table's file, before anything is encoded for it in vain.

    Raises:
        ConfigError: it would be the cohort's own, of another format, or share a record with another table.
    """
    if out.suffix.lower() in (".tsv", ".json", ".gz", ".xlsx", ".feather"):
        raise ConfigError(f"{out.name}: tables are .parquet or .csv; name such a file, or a folder")
    path = out if out.suffix.lower() in _SUFFIXES else out / "embeddings.parquet"
    alike = [file for file in path.parent.glob("*") if file.stem == path.stem and file.suffix.lower() in _SUFFIXES]
    others = [file for file in alike if file.name != path.name]
    if path.resolve() == cohort.resolve():
        raise ConfigError(f"{path.name}: this is the cohort; name another --out")
    if others and path.with_suffix(".json").exists():
        raise ConfigError(f"{path.name}: {others[0].name} is beside it, of the same record; name another --out")
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
        raise ConfigError(f"{path.name}: is a folder, or lies below a file; name another --out")
    return path


def _failures_of(path: Path) -> Path:
    """The list of a table's failures: its own, for several tables may be in one folder."""
    return path.with_name("failures.csv" if path.stem == "embeddings" else f"{path.stem}_failures.csv")


def _written_at(cases: Sequence[Case]) -> list[int]:
    """When the cases' files were last written: of a folder the newest one in it; 0 of what is not there."""
    images = [image for case in cases for image in case.images.values()]
    files = [file for image in images for file in (image if isinstance(image, tuple | list) else [image])]
    last_written = functools.cache(_last_written)  # slices of a volume, or series of a folder, are many
    return [last_written(split_series(file)[0]) for file in files]


def _last_written(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return max((file.stat().st_mtime_ns for file in files if file.is_file()), default=0)


def _with_patches(path: Path, made_from: dict[str, Any], overlap: float) -> dict[Path, dict[str, Any]]:
    """The table of the scans and that of their patches, and what each is made from."""
    pools = {path: "patches", path.with_name(f"{path.stem}_patches{path.suffix}"): "patch"}
    return {file: {**made_from, "pool": pool, "overlap": overlap} for file, pool in pools.items()}


def _finished(files: Mapping[Path, dict[str, Any]], overwrite: bool) -> dict[str, Any] | None:
    """The numbers of tables that are all complete."""
    done = [finished(file.with_suffix(".json"), [file], made, overwrite=overwrite) for file, made in files.items()]
    return None if None in done else done[0]


def _write(
    tables: Mapping[Path, pd.DataFrame], made_from: Mapping[Path, dict[str, Any]], config: Mapping[str, Any]
) -> None:
    """Write tables that say what they were made from, and records of them that say so, too, but not finished."""
    for file, table in tables.items():
        table.attrs["monai_diffae"] = {
            "made_from": made_from[file], "preprocessing": preprocessing_of(config), "versions": versions()
        }  # fmt: skip
        write_record(file.with_suffix(".json"), made_from[file], {})  # for a run that is killed before the end
        write = table.to_csv if file.suffix.lower() == ".csv" else table.to_parquet
        write_atomic(file, functools.partial(write, index=False))
