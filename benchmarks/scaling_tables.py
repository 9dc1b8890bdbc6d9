"""The points that ``scaling.py`` measures, and their tables and picture."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BEGIN, END = "<!-- begin of what benchmarks/scaling.py writes -->", "<!-- end of what benchmarks/scaling.py writes -->"
UNITS = {"embedding": "s"}  # of the time; else seconds per image


@dataclass
class Measurement:
    """Time and memory of a piece of work.

    Attributes:
        kind: training, embedding, processes or decoding.
        settings: of the work.
        seconds: of each round, per image; of all cases for embedding.
        predicted_seconds: the same by ``plan``.
        whole_seconds: of the whole program with imports, in each round; only for processes.
        predicted_whole_seconds: the same by ``plan``.
        memory_gib: the most that was resident, beyond the imports.
        predicted_gib: the same by ``plan``.
    """

    kind: str
    settings: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    predicted_seconds: list[float] = field(default_factory=list)
    whole_seconds: list[float] = field(default_factory=list)
    predicted_whole_seconds: list[float] = field(default_factory=list)
    memory_gib: float | None = None
    predicted_gib: float | None = None


@dataclass(frozen=True)
class Point:
    """A measurement on a curve.

    Attributes:
        curve: what grows.
        label: its value, as it is written.
        x: its value on the axis: for an image size, the number of pixels or voxels.
        measured: time and memory.
    """

    curve: str
    label: str
    x: float
    measured: Measurement


def curves(points: Iterable[Point]) -> dict[str, list[Point]]:
    """The points of each curve."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.curve, []).append(point)
    return found


def exponents(points: Iterable[Point]) -> dict[str, dict[str, float | None]]:
    """For each curve, b of time = a x^b and of memory = a x^b, by least squares of the logarithms."""
    return {
        name: {
            "time": _exponent([(point.x, _median(point.measured.seconds)) for point in curve]),
            "memory": _exponent([(point.x, point.measured.memory_gib) for point in curve]),
        }
        for name, curve in curves(points).items()
    }


def tables(points: Sequence[Point], machine: Mapping[str, Any]) -> str:
    """One row per curve in Markdown, with the machine."""
    lines = [
        f"Measured on {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, "
        f"{machine['precision']}, threads: {machine['threads']} (of several processes: one each), "
        f"rounds: {machine['rounds']}.",
        "",
        "| what grows | time | exponent | `plan` / measured | memory, GiB | exponent | `plan` / measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, curve in curves(points).items():
        measured = [point.measured for point in curve]
        grows = exponents(curve)[name]
        cells = [
            f"{name}, {_span(point.label for point in curve)}",
            f"{_span(_short(_median(this.seconds)) for this in measured)} {UNITS.get(measured[0].kind, 's per image')}",
            _fixed(grows["time"]),
            _range(_ratio(_median(this.predicted_seconds), _median(this.seconds)) for this in measured),
            _span(_short(this.memory_gib) for this in measured),
            _fixed(grows["memory"]),
            _range(_ratio(this.predicted_gib, this.memory_gib) for this in measured),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for this in (point.measured for point in points if point.measured.predicted_whole_seconds):
        predicted, seconds = _median(this.predicted_whole_seconds), _median(this.whole_seconds)
        lines += [
            "",
            f"The whole training by one process took {_short(seconds)} s from start to end, with imports, reading, "
            f"validation and saving; `plan` predicted {_short(predicted)} s ({_ratio(predicted, seconds)}).",
        ]
    return "\n".join([*lines, ""])


def put_into_page(page: Path, text: str, picture: Path) -> None:
    """Put the tables between the marks of a page, and the picture into the folder ``images`` beside it."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page.name}: the marks are missing: {BEGIN} and {END}")
    title = f"![Time and memory on logarithmic axes; measured, and as plan predicts](images/{picture.name})"
    page.write_text(f"{before}{BEGIN}\n\n{title}\n\n{text}\n{END}{after}")
    shutil.copyfile(picture, page.parent / "images" / picture.name)


def draw(points: Iterable[Point], path: Path) -> None:
    """Time and memory of each curve on logarithmic axes."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    found = curves(points)
    figure, axes = plt.subplots(2, len(found), figsize=(2.6 * len(found), 5), squeeze=False, layout="constrained")
    for (name, curve), column in zip(found.items(), axes.T, strict=True):
        xs = [point.x for point in curve]
        rows = [
            (column[0], "time", [_median(point.measured.seconds) for point in curve],
             [_median(point.measured.predicted_seconds) for point in curve]),
            (column[1], "memory", [point.measured.memory_gib for point in curve],
             [point.measured.predicted_gib for point in curve]),
        ]  # fmt: skip
        for axis, what, measured, predicted in rows:
            axis.loglog(xs, _with_gaps(measured), "o-", label="measured")
            axis.loglog(xs, _with_gaps(predicted), "x", color="black", label="plan")
            axis.set_xticks(xs, [point.label.partition(" ")[0] for point in curve])  # of sizes, the side
            axis.xaxis.set_minor_locator(NullLocator())
            known = [value for value in (*measured, *predicted) if value]
            if known:
                middle, ratio = (min(known) * max(known)) ** 0.5, max(max(known) / min(known), 10) ** 0.6
                axis.set_ylim(middle / ratio, middle * ratio)  # more than a decade, so that flat curves look flat
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_locator(NullLocator())
            exponent = exponents(curve)[name][what]
            axis.set_title(f"exponent {_fixed(exponent)}", fontsize=9)
        column[1].set_xlabel(name.replace("`", ""))
        column[0].set_ylabel(f"time, {UNITS.get(curve[0].measured.kind, 's per image')}")
        column[1].set_ylabel("memory, GiB")
    axes[0, 0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _exponent(pairs: Iterable[tuple[float, float | None]]) -> float | None:
    known = [(x, y) for x, y in pairs if y is not None and y > 0]
    if len(known) < 2:
        return None
    x, y = np.log(np.array(known)).T
    return float(np.polyfit(x, y, 1)[0])


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _with_gaps(values: Iterable[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _span(texts: Iterable[str]) -> str:
    """From the first to the last that is known."""
    known = [text for text in texts if text]
    return " to ".join(dict.fromkeys([known[0], known[-1]])) if known else ""


def _range(texts: Iterable[str]) -> str:
    return _span(sorted(filter(None, texts), key=float))


def _ratio(predicted: float | None, measured: float | None) -> str:
    return "" if predicted is None or not measured else f"{predicted / measured:.2f}"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:#.3g}".removesuffix(".")


def _fixed(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
