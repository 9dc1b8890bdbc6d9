"""Directions in z_sem: their files, and the strengths of moves along them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae.errors import ConfigError

if TYPE_CHECKING:
    from monai_diffae.latents import Direction

_LARGEST = 100
STRENGTHS: tuple[float, ...] = (-3, -2, -1, 0, 1, 2, 3)
"""Standard deviations of the training cases."""


def read_direction(path: str | os.PathLike[str]) -> Direction:
    """Read a file of :func:`~monai_diffae.apps.synthesis.fit_direction.fit_direction`."""
    from monai_diffae.latents import Direction

    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path.name}: there is no such file; make it with monai-diffae fit-direction")
    try:
        return Direction.from_json(json_content(path))
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from error


def is_direction(path: Path) -> bool:
    """Return whether a file is a direction, of any version."""
    from monai_diffae.latents.directions import FORMAT

    content = json_content(path)
    return isinstance(content, dict) and content.get("format") == FORMAT


def json_content(path: Path) -> Any:
    """Return the content of a JSON file; None if it cannot be read as JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def strength_names(strengths: Sequence[float]) -> list[str]:
    """The parts of file names that stand for strengths, such as ``-2.00`` and ``+0.50``."""
    if not strengths or max(map(abs, strengths)) > _LARGEST:
        raise ConfigError(f"strengths: give some from -{_LARGEST} to {_LARGEST} standard deviations, such as -2 and 2")
    names = [f"{strength:+.2f}" for strength in strengths]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:  # the later image would replace the earlier one
        raise ConfigError(
            f"strengths: two of them are {duplicate} when rounded to two digits, as in the images' names; omit one"
        )
    return names


def strength_titles(strengths: Sequence[float]) -> list[str]:
    """Return the titles of a picture's columns, one per strength."""
    return [f"{strength:+g}" if strength else "0" for strength in strengths]
