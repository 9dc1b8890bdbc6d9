"""Read the JSON files of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai_diffae.errors import ConfigError


def read_values(file: Path, advice: str = "copy the bundle again") -> dict[str, Any]:
    """Read a JSON file with keys and values, none if there is no such file; ``advice`` ends an error's message.

    Example:
        >>> read_values(Path("no_such_bundle/models/config.json"))
        {}
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file.name}: cannot be read; {advice}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file.name}: cannot be read; {advice}")
    return content
