"""A shipped model beside the demo's own: a copy to embed with, and the figures of all shipped models."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from monai_diffae.bundle import layout
from monai_diffae.bundle.folders import init_bundle, names_with_weights
from monai_diffae.bundle.layout import shipped


def copy_once(folder: Path, name: str) -> Path | None:
    """Copy a shipped bundle with weights, unless the folder exists; None: no such bundle is shipped."""
    if name not in names_with_weights():
        return None
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            init_bundle(Path(temporary) / folder.name, name).rename(folder)
    return folder


def held_out_figures() -> dict[str, dict[str, float]]:
    """What each shipped model achieves on held-out cases of its own data: figures by their names."""
    files = {name: shipped("bundles") / name / layout.CONFIGS / layout.METADATA for name in names_with_weights()}
    return {name: json.loads(file.read_text(encoding="utf-8"))["eval_metrics"] for name, file in files.items()}
