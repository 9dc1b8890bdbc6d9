"""Checks of what clients send as the name of an image, a label, a tag or a session."""

from __future__ import annotations

import re

from monai_diffae.errors import ConfigError

_LONGEST = 200
_TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_. -]{0,62}[A-Za-z0-9_])?")


def check_id(text: object, what: str = "image") -> str:
    """Return an id of an image, label or session if it is the plain name of a file, without a folder.

    Args:
        text: what the client sent.
        what: the argument's name, for the message.

    Raises:
        ConfigError: it is empty, a path, hidden, or no text.

    Example:
        >>> check_id("hippocampus_001")
        'hippocampus_001'
        >>> check_id("../../etc/passwd")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: image: must be an id without folders; GET /datastore/?output=all lists the ids
    """
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{what}: is empty; give an id of the datastore")
    if len(text) > _LONGEST or re.search(r"[/\\\x00-\x1f\x7f]", text) or text.startswith("."):
        raise ConfigError(f"{what}: must be an id without folders; GET /datastore/?output=all lists the ids")
    return text


def check_tag(text: object) -> str:
    """Return the tag of a label, such as ``final``, if it is a plain word.

    Raises:
        ConfigError: it could name another folder.

    Example:
        >>> check_tag("final")
        'final'
        >>> check_tag("../../x")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: tag: must be a word such as final or original, at most 64 letters, digits, ...
    """
    # MONAI Label's own tags are an enumeration of texts
    value = getattr(text, "value", text)
    if not isinstance(value, str) or not _TAG.fullmatch(value) or ".." in value:
        raise ConfigError("tag: must be a word such as final or original, at most 64 letters, digits, _ . or -")
    return value
