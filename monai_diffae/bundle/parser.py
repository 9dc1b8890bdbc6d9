"""MONAI's parser of configurations, and how it reads and changes ours; this loads MONAI."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ComponentLocator, ConfigParser

from monai_diffae.bundle.code import check_code, no_such_key
from monai_diffae.errors import ConfigError


class ModuleLocator(ComponentLocator):
    """MONAI's search for components by their short names, while other threads import modules."""

    def _find_module_names(self) -> list[str]:
        names = list(sys.modules)  # MONAI (1.6.1) goes through sys.modules itself, which fails if it changes meanwhile
        return [name for name in names if name.startswith(self.MOD_START) and not any(s in name for s in self.excludes)]


class Parser(ConfigParser):
    """MONAI's parser of configurations for programs of several threads."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.locator = ModuleLocator()


def read_config(*files: Path) -> Parser:
    """Read and check the configurations of a training in a bundle's folder; later ones replace earlier values."""
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
    """Set values of a configuration, named ``what`` and ``file`` in errors, by their ids such as ``inferer#steps``."""
    for key, value in values.items():
        # of an id with an empty part, MONAI ignores the part, or replaces the whole configuration
        if not (isinstance(key, str) and all(re.split("#|::", key))):
            raise ConfigError(no_such_key(str(key) or "''", what, file))
        try:
            parser[key] = value
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ConfigError(no_such_key(key, what, file)) from error
