"""The scans that a table was made of: a replaced scan is noticed, even if its size is the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_diffae.apps.results import checksum_of, read_record
from monai_diffae.data.atomic import write_json
from monai_diffae.data.cases import Case
from monai_diffae.data.contents import scan_contents, scan_states
from monai_diffae.errors import ConfigError


def scans_record(states: Sequence[str], contents: Sequence[str]) -> dict[str, str]:
    """What a table's record keeps of its scans: one checksum of their files' states, and one of their contents."""
    return {"state": checksum_of(states), "content": checksum_of(contents)}


def content_of_scans(cases: Sequence[Case], tables: Sequence[Path]) -> str:
    """A checksum of the contents of scans, for the record of pictures that are made of them.

    If one of the tables of embeddings was made of these scans and no file has changed since, its record has the
    checksum; else the scans are read.
    """
    state = checksum_of(scan_states(cases))
    for table in tables:
        recorded = (read_record(table.with_suffix(".json")) or {}).get("scans", {})
        if recorded.get("state") == state:
            return str(recorded["content"])
    return checksum_of(scan_contents(cases))


def check_scans(table: Path, cases: Sequence[Case], states: Sequence[str]) -> None:
    """Check that a complete table was made of these scans.

    If the state of a file has changed, for example because the cohort was copied, the scans are read, and their
    contents are compared. If these are the same, the record gets the new states.
    """
    record = table.with_suffix(".json")
    content: dict[str, Any] = read_record(record) or {}
    recorded = content.get("scans", {})
    if recorded.get("state") == checksum_of(states):
        return
    current = scans_record(states, scan_contents(cases))
    if recorded.get("content") != current["content"]:
        raise ConfigError(
            f"{table.name}: exists and was made of other scans, some were replaced since; set overwrite, or choose "
            "another out"
        )
    write_json(record, {**content, "scans": current})
