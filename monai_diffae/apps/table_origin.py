"""What a table of embeddings was made with: its model, preprocessing and cohort, and whether they fit others."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diffae import bundle as bundles
from monai_diffae.apps.record import read_record, record_of
from monai_diffae.bundle.config import preprocessing_checksum, preprocessing_config
from monai_diffae.bundle.model_file import checksum
from monai_diffae.data.atomic import write_json
from monai_diffae.data.cases import Case
from monai_diffae.data.embeddings import has_sampled_rows, read_metadata
from monai_diffae.data.fingerprints import differing_keys, file_checksum, json_digest
from monai_diffae.data.scan_states import scan_contents, scan_states
from monai_diffae.errors import ConfigError
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import PathLike

with on_first_use:
    import pandas as pd

    from monai_diffae.data import cohort_split

logger = logging.getLogger(__name__)

_IMAGE_POOLS = ("none", "patch")  # each z_sem belongs to a single image, so it can be decoded


def preprocessing_differences(table: pd.DataFrame | PathLike, config: Mapping[str, Any]) -> list[str]:
    """The keys in which a bundle's preprocessing differs from the one a table, or its file, was made with."""
    metadata = read_metadata(table) if isinstance(table, (str, os.PathLike)) else table.attrs.get("monai_diffae", {})
    recorded = metadata.get("preprocessing")
    return [] if recorded is None else differing_keys(recorded, preprocessing_config(config))


def recorded_preprocessing(table: pd.DataFrame) -> str | None:
    """The checksum of the preprocessing that a table was made with; None if the table and its record do not say it."""
    recorded = table.attrs.get("monai_diffae", {}).get("preprocessing")
    return None if recorded is None else preprocessing_checksum(recorded)


def warn_of_other_preprocessing(embeddings: PathLike, trained: bundles.TrainedBundle) -> None:
    """Log a warning if the scans of a table were preprocessed in another way than a bundle does here."""
    if differ := preprocessing_differences(embeddings, trained.config):
        logger.warning(
            "%s: its scans were preprocessed in another way than here (%s differ), so its z_sem do not fit; use the "
            "same overrides, or embed the cohort again",
            Path(embeddings).name,
            ", ".join(differ),
        )


def check_same_preprocessing(embeddings: PathLike, config: Mapping[str, Any]) -> None:
    """Check that the scans of a table were preprocessed as a bundle's own configuration says, without overrides."""
    if differ := preprocessing_differences(embeddings, config):
        raise ConfigError(
            f"{Path(embeddings).name}: its scans were preprocessed in another way than the bundle does "
            f"({', '.join(differ)} differ), so its z_sem do not fit; embed the cohort again, without overrides"
        )


def safe_overrides(table: pd.DataFrame) -> dict[str, Any]:
    """The overrides that are plain values of top-level keys: a table must not run code."""
    overrides = table.attrs.get("monai_diffae", {}).get("made_from", {}).get("overrides") or {}
    return {
        key: value
        for key, value in overrides.items()
        if key.isidentifier() and not re.search(r"[$@%]|_target_", json.dumps(value))
    }


def warn_if_cohort_changed(table: pd.DataFrame, split: cohort_split.SplitCohort, cohort: PathLike, what: str) -> None:
    """Log a warning, which begins with ``what`` the images are read for, if a cohort differs from that of a table."""
    made_from = table.attrs.get("monai_diffae", {}).get("made_from", {})
    if made_from.get("cohort", split.fingerprint) != split.fingerprint:
        logger.warning(
            "%s: %s has changed since the table was made (its cases, splits or file sizes); an id may now belong to "
            "another image",
            what,
            Path(cohort).resolve().name,
        )


def origin_of(embeddings: PathLike) -> dict[str, str]:
    """The SHA-256 of a table's ``model``, its ``pool`` and ``encoder``, from its metadata or the record beside it."""
    path = Path(embeddings)
    metadata = {} if path.suffix.lower() == ".csv" else read_metadata(path)  # other tools drop that of a Parquet
    return {"pool": "none", "encoder": "trained", **(metadata.get("made_from") or _recorded(path))}


def check_z_sem(embeddings: PathLike) -> None:
    """Check that a table of embeddings has z_sem of a trained bundle, which a decoder can use."""
    if (encoder := origin_of(embeddings)["encoder"]) != "trained":
        made, remedy = f"was made with encoder {encoder}", "train a bundle and embed the cohort with it"
        if encoder == "harmonized":
            made, remedy = "was harmonized", "use the table that it was made from"
        raise ConfigError(
            f"{Path(embeddings).name}: {made}, so it has no z_sem that a bundle could decode; {remedy}, or use this "
            "table for probe and neighbors"
        )


def check_same_model(embeddings: PathLike, bundle: PathLike, *, averages: bool = False) -> None:
    """Check that a table of embeddings was made with this bundle and, unless ``averages``, is of single images."""
    check_z_sem(embeddings)
    name, origin = Path(embeddings).name, origin_of(embeddings)
    if origin["model"] != checksum(bundle):
        raise ConfigError(f"{name}: another autoencoder made it; embed the cohort with this bundle")
    if origin["pool"] not in _IMAGE_POOLS and not averages:
        option = "patches" if origin["pool"] == "patches" else "pool"
        raise ConfigError(
            f"{name}: its z_sem are averages, which do not belong to single images; embed the cohort without {option}"
        )


def _recorded(path: Path) -> dict[str, Any]:
    """What the record beside a table says; a warning is logged if the table's z_sem are others."""
    record = record_of(path)
    content = read_record(record)
    # not complete: the run was killed between writing the record and the table
    if content is None or not content["complete"] or "model" not in content["made_from"]:
        raise ConfigError(
            f"{path.name}: there is no complete record {record.name} beside it, so its model is unknown; make both "
            "with monai-diffae embed"
        )
    sample = content["figures"].get("rows")
    is_unchanged = not path.is_file() or file_checksum(path) in content["files"].values()
    if not is_unchanged and isinstance(sample, str) and not has_sampled_rows(path, sample):
        logger.warning(
            "%s: its z_sem are not those that the record %s beside it describes: they were changed, or another "
            "autoencoder made them; copy each table together with its record",
            path.name,
            record.name,
        )
    return dict(content["made_from"])


# -- the scans that a table was made of: a replaced scan is noticed, even if its size is the same ----------------------


def scans_record(states: Sequence[str], contents: Sequence[str]) -> dict[str, str]:
    """What a table's record keeps of its scans: one checksum of their files' states, and one of their contents."""
    return {"state": json_digest(states), "content": json_digest(contents)}


def content_of_scans(cases: Sequence[Case], tables: Sequence[Path]) -> str:
    """A checksum of the contents of scans, for the record of pictures that are made of them."""
    state = json_digest(scan_states(cases))
    for table in tables:
        recorded = (read_record(record_of(table)) or {}).get("scans", {})
        if recorded.get("state") == state:
            return str(recorded["content"])
    return json_digest(scan_contents(cases))


def check_scans(table: Path, cases: Sequence[Case], states: Sequence[str]) -> None:
    """Check that a complete table was made of these scans: if the state of a file has changed, by their contents."""
    record = record_of(table)
    content: dict[str, Any] = read_record(record) or {}
    recorded = content.get("scans", {})
    if recorded.get("state") == json_digest(states):
        return
    current = scans_record(states, scan_contents(cases))
    if recorded.get("content") != current["content"]:
        raise ConfigError(
            f"{table.name}: exists and was made of other scans, some were replaced since; set overwrite, or choose "
            "another out"
        )
    write_json(record, {**content, "scans": current})
