"""The documentation site: `make docs` builds it in site/."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_type_hints

from sphinx.util.inspect import stringify_signature

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
python_maximum_signature_line_length = 100
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
copybutton_exclude = ".linenos, .gp, .go"


def escape_spatial_axes(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings write shapes as (B, C, *S), where reStructuredText would begin an emphasis."""
    lines[:] = [re.sub(r"(?<=[,( ])\*(?=\w)", r"\\*", line) for line in lines]


def plain_types(
    app: object, what: str, name: str, obj: Any, options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Show ``int`` for ``Annotated[int, Ge(1)]``: ranges and defaults are in the text of the arguments."""
    if what not in ("function", "method") or not callable(obj):
        return None
    try:
        hints = get_type_hints(obj)
        shown = inspect.signature(inspect.unwrap(obj))
    except (NameError, TypeError, ValueError):
        return None
    parameters = [p.replace(annotation=hints.get(p.name, p.annotation)) for p in shown.parameters.values()]
    shown = shown.replace(parameters=parameters[what == "method" :], return_annotation=inspect.Signature.empty)
    return stringify_signature(shown, unqualified_typehints=True), returns


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", plain_types)
    app.connect("autodoc-process-docstring", escape_spatial_axes, priority=400)  # before napoleon
