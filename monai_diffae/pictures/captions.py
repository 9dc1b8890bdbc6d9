"""Captions of cases: what a picture says about a case, only where it is asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from monai_diffae.errors import ConfigError

_LONGEST = 24


def check_captions(names: Sequence[str], labels: Collection[str]) -> None:
    """Check that captions can show what they are asked to.

    Args:
        names: ``id`` and names of labels.
        labels: the labels of the cases.

    Raises:
        ConfigError: a name is neither.
    """
    for name in names:
        if name != "id" and name not in labels:
            choices = ", ".join(["id", *sorted(labels)])
            raise ConfigError(f"captions: there is no {name!r}; choose from: {choices}")


def caption(values: Mapping[Any, Any], names: Sequence[str]) -> str:
    """The id of a case, and its labels with their names, one per line; a missing label is a dash.

    Example:
        >>> print(caption({"id": "case-1", "age": 61.2345, "sex": None}, ["id", "age", "sex"]))
        case-1
        age 61.23
        sex -
    """
    return "\n".join(
        _short(_text(values.get(name)) if name == "id" else f"{name} {_text(values.get(name))}") for name in names
    )


def _text(value: Any) -> str:
    if value is None or value != value:  # NaN
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
