"""MONAI's parser of configurations for programs of several threads, and what is built with it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ComponentLocator, ConfigParser

from monai_diffae.bundle.code import check_code
from monai_diffae.errors import ConfigError


class ModuleLocator(ComponentLocator):
    """MONAI's search for components by their short names, while other threads import modules.

    MONAI (1.6.1) goes through ``sys.modules`` itself, which fails if another thread imports a module meanwhile.

    Example:
        >>> ModuleLocator().get_component_module_name("Compose")
        'monai.transforms.compose'
    """

    def _find_module_names(self) -> list[str]:
        names = list(sys.modules)
        return [name for name in names if name.startswith(self.MOD_START) and not any(s in name for s in self.excludes)]


class Parser(ConfigParser):
    """MONAI's parser of configurations with a :class:`ModuleLocator`.

    Example:
        >>> Parser({"size": 8, "double": "$2 * @size"}).get_parsed_content("double")
        16
    """

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.locator = ModuleLocator()


def read_config(*files: Path) -> Parser:
    """Read the configurations of a training, of which later ones replace values of earlier ones, and check their code.

    The first file is in a folder of a bundle.
    """
    bundle, names = files[0].absolute().parents[1].name, ", ".join(file.name for file in files)
    parser = Parser()
    try:
        parser.read_config([str(file) for file in files])
        dict(parser.get())
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError) as error:
        raise ConfigError(f"{bundle}: {names} cannot be read; copy the bundle again") from error
    check_code(parser.get(), f"{bundle}: {names}")
    return parser


def set_values(parser: ConfigParser, values: Mapping[str, Any], what: str, file: str) -> None:
    """Set values of a configuration by their ids, such as ``{"inferer#steps": 20}``.

    ``what`` and ``file`` name the configuration and the file with its keys in errors.
    """
    for key, value in values.items():
        # of an id with an empty part, MONAI ignores the part, or replaces the whole configuration
        if not (isinstance(key, str) and all(re.split("#|::", key))):
            raise ConfigError(no_such_key(str(key) or "''", what, file))
        try:
            parser[key] = value
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ConfigError(no_such_key(key, what, file)) from error


def no_such_key(key: str, what: str, file: str) -> str:
    """The message about an id that a configuration does not have."""
    return f"{key}: {what} has no such key; see {file} for those it has"


def read_values(file: Path, advice: str = "copy the bundle again") -> dict[str, Any]:
    """Read a JSON file with keys and values, none if there is no such file; ``advice`` ends an error's message.

    Example:
        >>> read_values(Path("no_such_bundle/configs/train.json"))
        {}
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # the bundle can be the file of a model
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file.name}: cannot be read; {advice}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file.name}: cannot be read; {advice}")
    return content
