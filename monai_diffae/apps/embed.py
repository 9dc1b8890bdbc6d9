"""A cohort to a table of z_sem."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_diffae.apps.reading import (
    BundleCases,
    checksum,
    open_bundle,
    read_cases,
    read_split_cohort,
)
from monai_diffae.apps.records import checksum_of, finished, write_record
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer

logger = logging.getLogger(__name__)

# Convolutions of other batch sizes may take other algorithms, which differ in the last bits (4e-7 on a CPU): the
# encoder always runs on as many images, the last ones repeated where they do not suffice.
_ENCODED_AT_ONCE = 16
_OURS = re.compile(r"id|patient|split|z_\d+")


@dataclass(frozen=True)
class EmbedResult:
    """What :func:`embed` made.

    Attributes:
        path: ``embeddings.parquet``.
        num_cases: its rows.
        num_failed: cases that could not be used, listed in ``failures.csv`` beside it.
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
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device | None = None,
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> EmbedResult:
    """Encode every case of a cohort and write ``embeddings.parquet``.

    Its columns are ``id``, ``patient`` (the first 16 digits of a SHA-256: equal for equal patients; names or short
    numbers can be found from it by trying), ``split``, the cohort's label columns, and ``z_000``, ``z_001``, ...
    float32. A label column of one of these names gets ``label_`` before it. A z_sem does not depend on the other
    cases, their order, or ``batch_size`` (from 16 on to the bit, below that to about 1e-6).

    Args:
        bundle: a trained bundle's folder.
        cohort: a folder, table, datalist or scan.
        out: a folder, or the ``.parquet`` file itself.
        batch_size: images that are held on the device at once.
        workers: processes that read and preprocess; 0 does it in this one.
        device: where to compute; the GPU if there is one when None.
        columns: what the cohort's table calls our words, such as ``{"image": "file"}``.
        overwrite: make it anew although it is there.
        overrides: values for keys of the bundle's config, such as ``{"slice_step": 1}``.

    Raises:
        ConfigError: no trained bundle, or ``out`` holds embeddings of another model or cohort.
        CohortError: no usable case.

    Example:
        >>> embed("no_bundle", "cohort.csv", "out")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_bundle: there is no models/model.pt; train the bundle first
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: {batch_size} is below 1")
    path = Path(out) if str(out).endswith(".parquet") else Path(out) / "embeddings.parquet"
    model = checksum(bundle)
    trained = open_bundle(bundle, device, overrides)
    split, encoder_key = read_split_cohort(bundle, trained, cohort, columns, overrides)
    labels = checksum_of([(case.id, case.patient, case.split, case.labels) for case in split.cases])
    made_from = {"model": model, "cohort": split.fingerprint, "labels": labels, "overrides": dict(overrides or {})}
    record = path.with_suffix(".json")
    done = finished(record, [path], made_from, overwrite=overwrite)
    if done is not None:
        logger.info("%s is complete; nothing to do (--overwrite makes it anew)", path.name)
        return EmbedResult(path, done["num_cases"], done["num_failed"], skipped=True)
    cases = read_cases(split, trained, path.parent, encoder_key=encoder_key, workers=workers)
    z_sem = _encode_all(cases, trained.inferer, trained.network, batch_size, trained.device)
    table = _table(cases.cases, z_sem)
    write_record(record, made_from, {})  # not finished: for a run that is killed before the end
    write_atomic(path, lambda temporary: table.to_parquet(temporary, index=False))
    result = EmbedResult(path, len(table), len(cases.failures))
    write_record(record, made_from, {"num_cases": result.num_cases, "num_failed": result.num_failed})
    return result


@torch.no_grad()
def encode_exactly(
    images: Tensor, inferer: DiffusionAutoencoderInferer, network: nn.Module, at_once: int = _ENCODED_AT_ONCE
) -> Tensor:
    """z_sem (B, D) in float32, to the bit the same for an image whatever the others are.

    Args:
        images: (B, C, *S) in the model's range, on the network's device.
        inferer: encodes.
        network: the autoencoder, in evaluation mode.
        at_once: the size of every batch that the encoder gets.
    """
    parts = []
    for part in images.split(at_once):
        padded = torch.cat([part, part[-1:].expand(at_once - len(part), *part.shape[1:])])
        with (
            torch.autocast(images.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            parts.append(inferer.encode(padded.float(), network)[: len(part)])
    return torch.cat(parts)


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
    path = Path(embeddings)
    record = path.with_suffix(".json")
    try:
        content = json.loads(record.read_text())
        model, is_finished = str(content["made_from"]["model"]), bool(content["results"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path.name}: no record {record.name} beside it says which model made it; make both with "
            "monai-diffae embed"
        ) from error
    if not is_finished:  # a run that was killed between the record and the table
        raise ConfigError(f"{path.name}: was not finished; run monai-diffae embed again")
    return model


def check_made_with(embeddings: str | os.PathLike[str], bundle: str | os.PathLike[str]) -> None:
    """Refuse a table of embeddings that another model made.

    Raises:
        ConfigError: one did, or it is not known which.
    """
    if model_of(embeddings) != checksum(bundle):
        raise ConfigError(f"{Path(embeddings).name}: another autoencoder made it; embed the cohort with this bundle")


def _encode_all(
    cases: BundleCases,
    inferer: DiffusionAutoencoderInferer,
    network: nn.Module,
    batch_size: int,
    device: torch.device,
) -> NDArray[np.float32]:
    at_once = min(batch_size, _ENCODED_AT_ONCE)
    batches = cases.batches(batch_size, f"encoding {len(cases.cases)} cases")
    parts = [encode_exactly(seen.to(device), inferer, network, at_once).cpu() for _, _, seen in batches]
    return torch.cat(parts).numpy()


def _table(cases: Sequence[Case], z_sem: NDArray[np.float32]) -> pd.DataFrame:
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
    columns |= {f"z_{i:03d}": z_sem[:, i] for i in range(z_sem.shape[1])}
    return pd.DataFrame(columns)
