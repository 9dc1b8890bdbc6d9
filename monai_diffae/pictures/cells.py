"""Grids of small captioned images; a caption says only what is asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diffae.errors import ConfigError
from monai_diffae.lazy import on_first_use

with on_first_use:
    import torch

_INCHES = 1.4
_LONGEST = 24


def draw_cells(rows: Sequence[Iterable[tuple[torch.Tensor | None, str]]], path: Path) -> None:
    """Draw rows of pictures, each with a caption of one or several lines above it.

    Args:
        rows: pictures (1, 3 P, *S) of :func:`~monai_diffae.pictures.shown` with their captions; volumes are shown in
            three planes, and None leaves the cell empty.
        path: the PNG.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and needs a display

    from monai_diffae.pictures.pixels import PLANES, side_by_side

    rows = [list(row) for row in rows]
    cells = [[(None if image is None else side_by_side(image)[0], text) for image, text in row] for row in rows]
    height, width = next((pixels.shape[:2] for row in cells for pixels, _ in row if pixels is not None), (1, 1))
    num_lines = max(len(text.split("\n")) for row in cells for _, text in row)
    inches = _INCHES * max(1, height / width)
    size = (inches * len(cells[0]) * width / height, (inches + 0.1 + 0.15 * num_lines) * len(cells))
    figure = Figure(figsize=size, layout="constrained")
    if any(image is not None and image.ndim == 5 for row in rows for image, _ in row):
        figure.supxlabel(PLANES, fontsize=8, x=0.01, ha="left")
    for panels, row in zip(figure.subplots(len(cells), len(cells[0]), squeeze=False), cells, strict=True):
        for panel, (pixels, text) in zip(panels, row, strict=True):
            panel.set_title(text, fontsize=9, parse_math=False)
            panel.axis("off")
            if pixels is not None:
                panel.imshow(pixels, interpolation="nearest")
    figure.savefig(path, dpi=120, format="png")


def check_captions(names: Sequence[str], labels: Collection[str]) -> None:
    """Check that captions can show what they are asked to.

    Args:
        names: ``id`` and names of labels.
        labels: the labels of the cases.

    Raises:
        ConfigError: a name is neither.
    """
    for name in names:
        if name != "id" and name not in labels:
            choices = ", ".join(["id", *sorted(labels)])
            raise ConfigError(f"captions: there is no {name!r}; choose from: {choices}")


def caption(values: Mapping[Any, Any], names: Sequence[str]) -> str:
    """The id of a case, and its labels with their names, one per line; a missing label is a dash.

    Example:
        >>> print(caption({"id": "case-1", "age": 61.2345, "sex": None}, ["id", "age", "sex"]))
        case-1
        age 61.23
        sex -
    """
    return "\n".join(
        _short(_text(values.get(name)) if name == "id" else f"{name} {_text(values.get(name))}") for name in names
    )


def _text(value: Any) -> str:
    if value is None or value != value:  # NaN
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
