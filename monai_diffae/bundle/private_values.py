"""Configurations without paths, patients and other private values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from monai_diffae.bundle.config_values import is_formula

# Values that may name a patient, a file or a folder are never tracked.
PRIVATE_KEYS = ("_meta_", "dataset_dir", "output_dir", "bundle_root", "patient_pattern", "tracking_uri", "embeddings")

# They are null for others, as in the shipped bundles: a run that does not need them must not ask for them.
_OPTIONAL_KEYS = ("patient_pattern", "start_from")

# A slash or backslash in plain text, or in an expression a quoted absolute path with at least two folders.
_PATH = re.compile(r"^[^$@%].*[/\\]|^[/\\]|^\$.*['\"]([A-Za-z]:)?[/\\][^'\"/\\]+[/\\]")
# An absolute path or an address of another kind than https, or an expression with an absolute path that is not added to
# a folder, as in "$@bundle_root + '/models/model.pt'".
_ABSOLUTE = re.compile(
    r"(\$\s*['\"])?((?!https?:)[A-Za-z][\w+.-]*:|~)?[/\\]|\$.*(?<!\+ )['\"]([A-Za-z]:)?[/\\][^'\"/\\]+[/\\]"
)
SEPARATOR = re.compile("#|::")  # separates the parts of an id: ``#`` as people write it, ``::`` as MONAI stores it


def without_paths(config: dict[str, Any], private_keys: Sequence[str] = PRIVATE_KEYS) -> dict[str, Any]:
    """A configuration to show to others: without data items, and without anything that looks like a path.

    ``private_keys`` are removed, except below the top level if they only refer to another entry.

    Example:
        >>> without_paths({"dataset_dir": "doe", "a": {"cache_dir": "/doe/cache", "b": "$@output_dir + '/cache'"}})
        {'a': {'cache_dir': '(path)', 'b': "$@output_dir + '/cache'"}}
    """

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: "(data)" if k == "data" and isinstance(v, list) else clean(v)
                for k, v in value.items()
                if SEPARATOR.split(k)[-1] not in private_keys or is_formula(v)
            }
        if isinstance(value, list):
            return [clean(item) for item in value]
        return "(path)" if isinstance(value, str) and _PATH.search(value) else value

    return {key: clean(value) for key, value in config.items() if key not in private_keys}


def without_private_values(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration to run elsewhere: lists of data, values of :data:`PRIVATE_KEYS` and absolute paths are ``???``.

    A pattern that finds patients in paths and the bundle from which a training began are null.

    Example:
        >>> without_private_values({"dataset_dir": "/doe", "a": {"dataset_dir": "@dataset_dir"}, "bundle_root": "."})
        {'dataset_dir': '???', 'a': {'dataset_dir': '@dataset_dir'}, 'bundle_root': '.'}
    """

    def blank(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: blank(k, v) for k, v in value.items()}
        if isinstance(value, list):
            return "???" if SEPARATOR.split(key)[-1] == "data" else [blank(key, item) for item in value]
        if not isinstance(value, str) or value in ("???", "."):
            return value
        if SEPARATOR.split(key)[-1] in _OPTIONAL_KEYS and not value.startswith(("@", "%")):
            return None
        is_private = SEPARATOR.split(key)[-1] in PRIVATE_KEYS and not is_formula(value)
        return "???" if is_private or _ABSOLUTE.match(value) else value

    return {key: blank(key, value) for key, value in config.items()}


def flat_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The plain values of a configuration by their ids: ``{"train#trainer#max_epochs": 10, ...}``.

    Expressions, references and lists of components are omitted, as the configuration file has them.

    Example:
        >>> flat_parameters({"a": 1, "b": {"c": [2, 3], "d": "@a"}})
        {'a': 1, 'b#c': [2, 3]}
    """
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if key not in ("_target_", "_meta_", "_desc_"):
                    visit(f"{prefix}#{key}" if prefix else key, item)
        elif isinstance(value, list) and any(isinstance(item, (dict, str)) for item in value):
            for i, item in enumerate(value):
                visit(f"{prefix}#{i}", item)
        elif not is_formula(value):
            flat[prefix] = value

    visit("", config)
    return flat
