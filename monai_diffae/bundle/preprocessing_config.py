"""The part of a configuration that says how scans are preprocessed, and its checksum."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any


def preprocessing_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a bundle's configuration that describes the preprocessing, with the keys that it refers to."""
    transforms = config.get("preprocessing")
    keys = sorted(set(re.findall(r"@(\w+)", json.dumps(transforms))))
    return {**{key: config[key] for key in keys if key in config}, "preprocessing": transforms}


def preprocessing_checksum(preprocessing: Mapping[str, Any]) -> str:
    """SHA-256 of the values of :func:`preprocessing_config`; 1 and 1.0 are the same value.

    Example:
        >>> preprocessing_checksum({"percentiles": (1, 99)}) == preprocessing_checksum({"percentiles": [1.0, 99.0]})
        True
    """
    plain = json.loads(json.dumps(preprocessing), parse_int=float)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
