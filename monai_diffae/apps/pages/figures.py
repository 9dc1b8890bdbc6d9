"""Charts as SVG: drawn by matplotlib, in the page's colours, each series with its own marker and dashes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from monai_diffae.data.fingerprints import digest
from monai_diffae.policies import Range

_SIZE_PX = (420, 280)
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_INK, _LINE, _SURFACE = "#586070", "#dcdfe4", "#fefefe"
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6f6a00", "#7a7f87")
_VARIABLES = {_INK: "muted", _LINE: "line", _SURFACE: "surface"} | {each: f"c{i}" for i, each in enumerate(_SERIES)}
_DASHES, _MARKERS = ("-", (0, (4, 2)), ":", "-."), "osD^"
_MOST_POINTS = 400
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "monai_diffae",
    "font.size": 12,
    "axes.edgecolor": _INK,
    "grid.color": _LINE,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None  # ends of intervals
    high: Sequence[float] | None = None
    has_markers: bool = True


@dataclass(frozen=True)
class Axes:
    """The axes of a chart."""

    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    reference: float | None = None  # a value of y to compare with, drawn as a dotted line
    diagonal: Range | None = None  # the ends of the line y = x to draw


@dataclass(frozen=True)
class Chart:
    """A chart with its heading, which may be empty."""

    title: str
    svg: Markup


def line_chart(series: Sequence[Series], axes: Axes, title: str = "") -> Chart:
    """Draw lines; those without a finite value are left out."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and needs a display

    drawn = [each for each in series if np.isfinite(np.asarray(each.y, float)).any()]
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(_SIZE_PX[0] / 72, _SIZE_PX[1] / 72), layout="constrained")
        panel = figure.subplots()
        for number, each in enumerate(drawn):
            _draw(panel, each, number)
        _finish(panel, axes)
        if len(drawn) > 1:
            columns = 2 if max(len(each.name) for each in drawn) < 32 else 1
            figure.legend(loc="outside lower center", frameon=False, ncols=columns, handlelength=2.5)
        file = io.StringIO()
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=none)
    return Chart(title, _inline(file.getvalue(), f"{title or axes.y_label}: {', '.join(each.name for each in drawn)}"))


def _draw(panel: Any, series: Series, number: int) -> None:
    colour = _SERIES[number % len(_SERIES)]
    step = max(1, -(-len(series.x) // _MOST_POINTS))
    x, y = (np.asarray(values, float)[::step] for values in (series.x, series.y))
    marker = _MARKERS[number % 4] if series.has_markers else None
    keep = np.isfinite(y)
    panel.plot(
        x[keep],
        y[keep],
        color=colour,
        linestyle=_DASHES[number % 4],
        marker=marker,
        markersize=7,
        markeredgecolor=_SURFACE,
        linewidth=2,
        label=series.name,
    )
    if series.low is not None and series.high is not None:
        panel.vlines(x, *(np.asarray(ends, float)[::step] for ends in (series.low, series.high)), color=colour)


def _finish(panel: Any, axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    panel.set(xlabel=axes.x_label, ylabel=axes.y_label)
    panel.grid(axis="y")
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", which="both", left=False)
    if axes.reference is not None:
        panel.axhline(axes.reference, color=_INK, linestyle=":", linewidth=1)
    if axes.diagonal is not None:
        panel.plot(axes.diagonal, axes.diagonal, color=_INK, linestyle=":", linewidth=1)
    for axis, is_log in ((panel.xaxis, axes.log_x), (panel.yaxis, axes.log_y)):
        if is_log:
            panel.set(**{f"{axis.axis_name}scale": "log"})
            low, high = sorted(axis.get_view_interval())
            axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0)))
            axis.set_minor_formatter("")
        else:
            axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _inline(svg: str, text: str) -> Markup:
    """The element of a SVG file with the page's colours and ids of its own, so that a page may have several."""
    root, prefix = ElementTree.fromstring(svg), f"c{digest(svg)[:8]}-"  # noqa: S314, matplotlib wrote it
    for definitions in root.findall(f"{_SVG}defs"):
        for style in definitions.findall(f"{_SVG}style"):  # would hold for the whole page
            definitions.remove(style)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {
            name.removeprefix(_XLINK): _of_page(name, value, prefix) for name, value in element.attrib.items()
        }
    root.attrib = {"role": "img", "aria-label": text, "viewBox": root.attrib["viewBox"]}
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704, which escapes texts


def _of_page(name: str, value: str, prefix: str) -> str:
    """The value of an attribute, with the page's variables instead of colours, and ids with a prefix."""
    value = prefix + value if name == "id" else value.replace("#", f"#{prefix}") if name.endswith("href") else value
    value = value.replace("url(#", f"url(#{prefix}")
    for colour, variable in _VARIABLES.items():
        value = value.replace(colour, f"var(--{variable})")
    return value


def short(value: float) -> str:
    """A number for a tick, such as 20k or 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"
