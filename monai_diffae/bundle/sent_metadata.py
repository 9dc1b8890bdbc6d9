"""MONAI's description of a bundle, ``metadata.json``: a document for others, so its texts are sent; paths are not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from monai_diffae.bundle.sent_values import SentValues
from monai_diffae.errors import ConfigError

_KEYS = (
    "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
    "optional_packages_version", "supported_apps", "name", "task", "description", "authors", "copyright", "data_source",
    "data_type", "image_classes", "label_classes", "pred_classes", "eval_metrics", "intended_use", "references",
    "network_data_format",
)  # fmt: skip
_ADDRESS = re.compile(r"https?://\S+")
# a backslash, the beginning of an absolute path, a file in a folder, or a folder in a folder
_PATH = re.compile(r"\\|(^|[\s'\"(=,;])(~|\.{1,2})?/\S|\b[A-Za-z]+:/|/\S*\.[A-Za-z]\w{0,4}\b|[^\s/]+/[^\s/]+/")


class _Metadata(SentValues):
    def _is_key_sent(self, key: str, id: str) -> bool:
        return id.partition("#")[0] in _KEYS

    def _may_be_sent(self, text: str, id: str) -> bool:
        return True


def sent_metadata(content: Mapping[str, Any]) -> SentValues:
    """What is sent of ``metadata.json``: the keys of MONAI's schema, as their author wrote them.

    Example:
        >>> sent_metadata({"name": "My model", "patients": "Doe"}).content
        {'name': 'My model'}
    """
    sent = _Metadata(content)
    _check_paths(sent.content, "")
    return sent


def _check_paths(value: Any, id: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_paths(key, id)
            _check_paths(item, f"{id}#{key}" if id else key)
    elif isinstance(value, list):
        for item in value:
            _check_paths(item, id)
    elif isinstance(value, str) and _PATH.search(_ADDRESS.sub("", value)):
        raise ConfigError(f"metadata.json: {id} names a path; others read this text, so write it without the path")
