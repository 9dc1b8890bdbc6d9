"""Files of directions in z_sem: read, and recognised among other JSON files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae.errors import ConfigError

if TYPE_CHECKING:
    from monai_diffae.latents import Direction


def read_direction(path: str | os.PathLike[str]) -> Direction:
    """Read a file of :func:`~monai_diffae.apps.synthesis.fit_direction.fit_direction`.

    Raises:
        ConfigError: the file does not exist, or is not a direction.

    Example:
        >>> read_direction("no.json")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no.json: there is no such file; make it with monai-diffae fit-direction
    """
    from monai_diffae.latents import Direction

    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path.resolve().name}: is a folder; give the direction file in it")
    if not path.is_file():
        raise ConfigError(f"{path.name}: there is no such file; make it with monai-diffae fit-direction")
    content = json_content(path)
    if content is None:
        raise ConfigError(f"{path.name}: is not a direction; make one with monai-diffae fit-direction")
    try:
        return Direction.from_json(content)
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
