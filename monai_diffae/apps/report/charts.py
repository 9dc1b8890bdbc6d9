"""Line charts as SVG: their colours follow the page's, and each series has its own marker and dashes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from monai_diffae.apps.web_page import joined

_WIDTH, _HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 12, 12, 42
_DASHES = ("", "7 4", "2 4", "9 3 2 3")
_MARKERS = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M-3.5-3.5h7v7h-7z", "M0-5l5 5l-5 5l-5-5z", "M0-4.8l4.8 8.4h-9.6z")
_MOST_POINTS = 400

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: its name in the legend.
        x: places, ascending.
        y: values.
        low: lower ends of intervals; None: there are none.
        high: upper ends of intervals.
        has_markers: whether each point is marked.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    has_markers: bool = True


@dataclass(frozen=True)
class Axes:
    """The axes of a chart.

    Attributes:
        x_label: what x is.
        y_label: what y is.
        log_x: logarithmic x.
        log_y: logarithmic y.
        reference: a value of y to compare with, drawn as a dotted line; None: none.
        diagonal: the ends of the line y = x to draw; None: none.
    """

    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    reference: float | None = None
    diagonal: tuple[float, float] | None = None


def line_chart(series: Sequence[Series], axes: Axes, title: str = "") -> Markup:
    """A chart with its legend.

    Args:
        series: the lines; those without a finite value are left out.
        axes: the axes.
        title: the heading of the chart.
    """
    drawn = [each for each in series if np.isfinite(np.asarray(each.y, float)).any()]
    ends = [] if axes.diagonal is None else list(axes.diagonal)
    references = ends if axes.reference is None else [*ends, axes.reference]
    x_values = np.append(_span(drawn, "x", axes.log_x), ends)
    y_values = np.append(_span(drawn, "y", axes.log_y), references)
    place_x, ticks_x = _scale(x_values, axes.log_x, _LEFT, _WIDTH - _RIGHT)
    place_y, ticks_y = _scale(y_values, axes.log_y, _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(ticks_x, ticks_y, place_x, place_y, axes)]
    parts += [_line(each, i, place_x, place_y) for i, each in enumerate(drawn)]
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, f"{title or axes.y_label}: {', '.join(each.name for each in drawn)}", joined(parts)
    )
    heading = Markup("<h3>{}</h3>").format(title) if title else Markup()
    legend = _legend(drawn) if len(drawn) > 1 else Markup()
    return Markup('<figure class="chart">{}{}{}</figure>').format(heading, svg, legend)


def interval_mark(
    value: float, low: float | None, high: float | None, limits: tuple[float, float], reference: float
) -> Markup:
    """A small picture for a cell of a table: a value with its interval, beside a reference value."""
    first, last = limits

    def place(x: float) -> float:
        return round(6 + 148 * (min(max(x, first), last) - first) / ((last - first) or 1), 1)

    bar = Markup()
    if low is not None and high is not None and low == low and high == high:
        bar = Markup('<line class="bar" x1="{}" x2="{}" y1="9" y2="9"/>').format(place(low), place(high))
    return Markup(
        '<svg class="interval" viewBox="0 0 160 18" aria-hidden="true">'
        '<line class="rule" x1="6" x2="154" y1="9" y2="9"/>'
        '<line class="reference" x1="{0}" x2="{0}" y1="2" y2="16"/>{1}<circle class="dot" cx="{2}" cy="9" r="4"/></svg>'
    ).format(place(reference), bar, place(value))


def _span(series: Sequence[Series], axis: str, is_log: bool) -> Floats:
    names = ("x",) if axis == "x" else ("y", "low", "high")
    values = [
        np.asarray(getattr(each, name), float) for each in series for name in names if getattr(each, name) is not None
    ]
    flat = np.concatenate([*values, np.empty(0)])
    flat = flat[np.isfinite(flat)]
    return flat[flat > 0] if is_log else flat


def _scale(values: Floats, is_log: bool, start: float, end: float) -> tuple[Callable[[float], float], list[float]]:
    """A function from values to places, and the values with ticks."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if is_log:
        low, high = (low / 1.1, high * 1.1) if low > 0 else (0.1, 1.0)
        ticks = LogLocator(subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0)).tick_values(low, high)
    else:
        margin = 0.04 * (high - low) or abs(high) * 0.05 or 0.5
        low, high = low - margin, high + margin
        ticks = MaxNLocator(5).tick_values(low, high)
    transform = np.log10 if is_log else float
    first, last = float(transform(low)), float(transform(high))

    def place(value: float) -> float:
        share = (float(transform(max(value, low) if is_log else value)) - first) / (last - first)
        return round(start + share * (end - start), 1)

    return place, [float(tick) for tick in ticks if low <= tick <= high]


def _grid(
    ticks_x: Sequence[float], ticks_y: Sequence[float], place_x: Callable[[float], float],
    place_y: Callable[[float], float], axes: Axes,
) -> Markup:  # fmt: skip
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [
        Markup(
            '<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
            '<text class="tick" x="{3}" y="{4}" text-anchor="end">{5}</text>'
        ).format(_LEFT, right, place_y(tick), _LEFT - 7, place_y(tick) + 4, _short(tick))
        for tick in ticks_y
    ]
    parts += [
        Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            place_x(tick), bottom + 17, _short(tick)
        )
        for tick in ticks_x
    ]
    parts.append(Markup('<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(_LEFT, right, bottom))
    parts.append(
        Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (_LEFT + right) / 2, _HEIGHT - 6, axes.x_label
        )
    )
    middle = (bottom + _TOP) / 2
    parts.append(
        Markup('<text class="label" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            middle, axes.y_label
        )
    )
    if axes.reference is not None:
        parts.append(
            Markup('<line class="reference" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(
                _LEFT, right, place_y(axes.reference)
            )
        )
    if axes.diagonal is not None:
        low, high = axes.diagonal
        parts.append(
            Markup('<line class="reference" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
                place_x(low), place_y(low), place_x(high), place_y(high)
            )
        )
    return joined(parts)


def _line(series: Series, index: int, place_x: Callable[[float], float], place_y: Callable[[float], float]) -> Markup:
    step = -(-len(series.x) // _MOST_POINTS)
    keep = [i for i in range(0, len(series.x), step) if series.y[i] == series.y[i]]
    points = [(place_x(series.x[i]), place_y(series.y[i])) for i in keep]
    path = "M" + "L".join(f"{x} {y}" for x, y in points)
    parts = [Markup('<path class="line" stroke-dasharray="{}" d="{}"/>').format(_DASHES[index % 4], path)]
    if series.has_markers:
        for i, (x, y) in zip(keep, points, strict=True):
            text = f"{series.name}: {_short(series.y[i])} at {_short(series.x[i])}"
            if series.low is not None and series.high is not None and series.low[i] is not None:
                low, high = series.low[i], series.high[i]
                parts.append(
                    Markup('<line class="bar" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
                        x, place_y(low), place_y(high)
                    )
                )
                text += f" ({_short(low)} to {_short(high)})"
            parts.append(
                Markup('<path class="marker" transform="translate({} {})" d="{}"><title>{}</title></path>').format(
                    x, y, _MARKERS[index % 4], text
                )
            )
    return Markup('<g class="series s{}">{}</g>').format(index % 8, joined(parts))


def _legend(series: Sequence[Series]) -> Markup:
    item = Markup(
        '<li><svg viewBox="-14 -7 28 14" aria-hidden="true" class="key"><g class="series s{}">'
        '<path class="line" stroke-dasharray="{}" d="M-14 0h28"/>{}</g></svg>{}</li>'
    )
    marker = Markup('<path class="marker" d="{}"/>')
    items = [
        item.format(i % 8, _DASHES[i % 4], marker.format(_MARKERS[i % 4]) if each.has_markers else Markup(), each.name)
        for i, each in enumerate(series)
    ]
    return Markup('<ul class="legend">{}</ul>').format(joined(items))


def _short(value: float) -> str:
    """A number for a tick.

    Example:
        >>> _short(20000.0), _short(0.25), _short(1500000)
        ('20k', '0.25', '1.5M')
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"
