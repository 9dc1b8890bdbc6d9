"""MONAI's parser of configurations, for programs of several threads."""

from __future__ import annotations

import json
import sys
from typing import Any

from monai.bundle import ComponentLocator, ConfigParser

# MONAI's transforms (1.6.1) give a volume another grid if its affine is rounded differently
_KEYS, _SPACING = {"keys": "@image_keys"}, {"keys": "@image_keys", "pixdim": "@spacing_mm"}
_REPLACED = {
    json.dumps(old, sort_keys=True): {"_target_": f"monai_diffae.transforms.{name}", **arguments}
    for old, name, arguments in (
        ({"_target_": "Orientationd", "axcodes": "RAS", "labels": None, **_KEYS}, "ToRASd", _KEYS),
        ({"_target_": "Spacingd", "mode": "bilinear", "padding_mode": "border", **_SPACING}, "ToSpacingd", _SPACING),
    )
}


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

    @classmethod
    def load_config_files(cls, files: Any, **options: Any) -> dict[str, Any]:
        """Read configurations; transforms that earlier versions wrote are replaced by those of this one."""
        content: dict[str, Any] = super().load_config_files(files, **options)
        preprocessing = content.get("preprocessing")
        if isinstance(preprocessing, dict) and isinstance(preprocessing.get("transforms"), list):
            new = [_REPLACED.get(json.dumps(one, sort_keys=True), one) for one in preprocessing["transforms"]]
            content["preprocessing"] = {**preprocessing, "transforms": new}
        return content
