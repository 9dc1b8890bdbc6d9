"""MONAI's parser of configurations, for programs of several threads."""

from __future__ import annotations

import sys
from typing import Any

from monai.bundle import ComponentLocator, ConfigParser


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

    Args:
        config: the configuration; None: an empty one.

    Example:
        >>> Parser({"size": 8, "double": "$2 * @size"}).get_parsed_content("double")
        16
    """

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.locator = ModuleLocator()
