"""The documentation site: `make docs` builds it in site/."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from monai_diffae import __version__

project = "monai_diffae"
copyright = "the monai_diffae authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"monai_diffae {release}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
copybutton_exclude = ".linenos, .gp, .go"


def escape_spatial_axes(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings write shapes as (B, C, *S), where reStructuredText would begin an emphasis."""
    lines[:] = [re.sub(r"(?<=[,( ])\*(?=\w)", r"\\*", line) for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escape_spatial_axes, priority=400)  # before napoleon
