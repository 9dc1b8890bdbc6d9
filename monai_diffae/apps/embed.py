"""A cohort to a table of z_sem."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from monai_diffae.apps.encoding import EncodedCohort, check_any, encode_cohort
from monai_diffae.apps.parts import this_process
from monai_diffae.apps.reading import checksum, config_checksum, open_bundle, read_split_cohort
from monai_diffae.apps.records import checksum_of, finished, versions, write_record
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure, write_failures
from monai_diffae.data.slice_cases import gather_slices
from monai_diffae.data.split_cohort import SplitCohort
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)

Pool = Literal["none", "mean", "mean_std"]

_FEW_CASES = 256
_MOST_WORKERS = 8
_OURS = re.compile(r"id|patient|split|slices|(z|std)_\d+")


@dataclass(frozen=True)
class EmbedResult:
    """What :func:`embed` made.

    Attributes:
        path: ``embeddings.parquet``.
        num_cases: its rows.
        num_failed: cases (volumes where these are pooled) that could not be used, listed in ``failures.csv`` beside it.
        skipped: whether it was there already.
    """

    path: Path
    num_cases: int
    num_failed: int
    skipped: bool = False


def embed(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    pool: Pool = "none",
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

    Scans are read while others are encoded, and none is kept. A run that was killed goes on, and several processes
    that ``torchrun`` starts (on several machines with a common disk) share the work: the table is the same, and the
    first process writes it. A Parquet table's metadata, ``pandas.read_parquet(path).attrs["monai_diffae"]``, say what
    it was made with: the model's checksum, the preprocessing and versions, as the ``.json`` beside the table does.

    Args:
        bundle: a trained bundle's folder.
        cohort: a folder, table, datalist or scan.
        out: a folder, or the file itself: ``.parquet``, or ``.csv``, which takes more room.
        pool: ``none``: a row a slice; ``mean`` or ``mean_std``: a row a volume.
        batch_size: images that are held on the device at once (a few more where the encoder takes more at once).
        workers: processes that read and preprocess ahead; 0 does it in this one; None: one a core, at most 8, for 256
            cases or more.
        device: where to compute; the GPU if there is one when None.
        columns: what the cohort's table calls our words, such as ``{"image": "file"}``.
        overwrite: make it anew although it is there.
        overrides: values for keys of the bundle's config, such as ``{"slice_step": 1}``.

    Raises:
        ConfigError: no trained bundle, no slices to pool, or ``out`` holds embeddings of another model or cohort.
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
    path = Path(out) if Path(out).suffix in (".parquet", ".csv") else Path(out) / "embeddings.parquet"
    model, process = checksum(bundle), this_process()
    trained = open_bundle(bundle, device or process.device, overrides)
    split, encoder_key = read_split_cohort(bundle, trained, cohort, columns, overrides)
    if pool != "none" and all(case.slice_index is None for case in split.cases):
        raise ConfigError("pool: the bundle takes no volume of this cohort apart into slices; leave it out")
    labels = checksum_of([(case.id, case.patient, case.split, case.labels) for case in split.cases])
    made_from = {
        "model": model, "cohort": split.fingerprint, "labels": labels, "pool": pool, "overrides": dict(overrides or {})
    }  # fmt: skip
    record = path.with_suffix(".json")
    done = finished(record, [path], made_from, overwrite=overwrite)
    if done is not None:
        logger.info("%s is complete; nothing to do (--overwrite makes it anew)", path.name)
        return EmbedResult(path, done["num_cases"], done["num_failed"], skipped=True)
    # the parts of a run that was killed are of use to the same one only
    parts_folder = path.parent / f".{path.stem}-{checksum_of([made_from, config_checksum(bundle)])[:12]}"
    encoded = encode_cohort(
        split.cases, trained, parts_folder, encoder_key=encoder_key, batch_size=batch_size,
        workers=_workers(workers, len(split.cases)), process=process,
    )  # fmt: skip
    if encoded is None:  # the first process gathers what this one has made
        return EmbedResult(path, 0, 0)
    table, failures = _gathered(split, encoded, pool, path.parent / "failures.csv")
    table.attrs["monai_diffae"] = {
        "made_from": made_from, "preprocessing": _preprocessing(trained.config), "versions": versions()
    }  # fmt: skip
    write_record(record, made_from, {})  # not finished: for a run that is killed before the end
    write_atomic(path, lambda temporary: _write(table, temporary))
    result = EmbedResult(path, len(table), len(failures))
    write_record(record, made_from, {"num_cases": result.num_cases, "num_failed": result.num_failed})
    encoded.parts.remove()
    return result


def _gathered(
    split: SplitCohort, encoded: EncodedCohort, pool: Pool, failures_file: Path
) -> tuple[pd.DataFrame, list[Failure]]:
    """The table, and what is not in it, which is written too.

    Raises:
        CohortError: nothing is in it.
    """
    failures = [*split.failures, *encoded.failures]
    if pool == "none":
        write_failures(failures_file, failures)
        check_any(encoded.cases, failures, "cases")
        return _table(encoded.cases, _columns("z", encoded.z_sem)), failures
    volumes, failures = gather_slices(split.cases, failures)
    write_failures(failures_file, failures)
    check_any(volumes, failures, "volumes")
    return _pooled(volumes, encoded.cases, encoded.z_sem, pool), failures


def _workers(workers: int | None, num_cases: int) -> int:
    """Reading ahead in one process a core, but not for what is read at once."""
    if workers is not None:
        return workers
    return 0 if num_cases < _FEW_CASES else min(os.cpu_count() or 1, _MOST_WORKERS)


def _preprocessing(config: Mapping[str, Any]) -> dict[str, Any]:
    """The transforms as the bundle's config says them, and the keys that they refer to."""
    transforms = config.get("preprocessing")
    keys = sorted(set(re.findall(r"@(\w+)", json.dumps(transforms))))
    return {**{key: config[key] for key in keys if key in config}, "preprocessing": transforms}


def _write(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)


def patient_hash(patient: str) -> str:
    """The first 16 hexadecimal digits of a patient's SHA-256.

    Example:
        >>> patient_hash("sub-01")
        '41c1ca2f53f4dd0b'
    """
    return hashlib.sha256(patient.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def model_of(embeddings: str | os.PathLike[str]) -> str:
    """The SHA-256 of the weights that a table of embeddings was made with, from the record beside it.

    Raises:
        ConfigError: there is no such record.
    """
    return _model_and_pool(embeddings)[0]


def check_made_with(embeddings: str | os.PathLike[str], bundle: str | os.PathLike[str]) -> None:
    """Refuse a table of embeddings that another model made, or that holds no z_sem which the model could decode.

    Raises:
        ConfigError: another model made it, or it is not known which, or its z_sem are pooled.
    """
    name, (model, pool) = Path(embeddings).name, _model_and_pool(embeddings)
    if model != checksum(bundle):
        raise ConfigError(f"{name}: another autoencoder made it; embed the cohort with this bundle")
    if pool != "none":
        raise ConfigError(f"{name}: its z_sem are pooled, of no single image; embed the cohort without --pool")


def _model_and_pool(embeddings: str | os.PathLike[str]) -> tuple[str, str]:
    path = Path(embeddings)
    record = path.with_suffix(".json")
    try:
        content = json.loads(record.read_text())
        made_from, is_finished = content["made_from"], bool(content["results"])
        model, pool = str(made_from["model"]), str(made_from.get("pool", "none"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path.name}: no record {record.name} beside it says which model made it; make both with "
            "monai-diffae embed"
        ) from error
    if not is_finished:  # a run that was killed between the record and the table
        raise ConfigError(f"{path.name}: was not finished; run monai-diffae embed again")
    return model, pool


def _pooled(
    volumes: Mapping[str, Sequence[Case]], cases: Sequence[Case], z_sem: NDArray[np.float32], pool: Pool
) -> pd.DataFrame:
    """A row a volume, of the z_sem (N, D) of all slices; sums are in float64 and in the slices' order."""
    row_of = {case.id: row for row, case in enumerate(cases)}
    codes = [z_sem[[row_of[case.id] for case in slices]].astype(np.float64) for slices in volumes.values()]
    columns: dict[str, Any] = {"slices": [len(z) for z in codes]}
    columns |= _columns("z", np.stack([z.mean(axis=0) for z in codes]))
    if pool == "mean_std":
        columns |= _columns("std", np.stack([z.std(axis=0) for z in codes]))
    whole = [replace(slices[0], id=name, slice_index=None) for name, slices in volumes.items()]
    return _table(whole, columns)


def _columns(prefix: str, values: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.float32]]:
    return {f"{prefix}_{i:03d}": column for i, column in enumerate(values.T.astype(np.float32))}


def _table(cases: Sequence[Case], codes: Mapping[str, Any]) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "id": [case.id for case in cases],
        "patient": [patient_hash(case.patient) for case in cases],
        "split": [case.split for case in cases],
    }
    for name in dict.fromkeys(name for case in cases for name in case.labels):
        column = f"label_{name}" if _OURS.fullmatch(name) else name
        values = [case.labels.get(name) for case in cases]
        is_number = all(value is None or isinstance(value, (int, float)) for value in values)
        columns[column] = values if is_number else [None if value is None else str(value) for value in values]
    return pd.DataFrame({**columns, **codes})
