"""The direct test for shortcuts: one label or marker alone is changed in a scan, and the written file is scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae import latents
from monai_diffae.apps.synthesis.users_model import ScoredCase
from monai_diffae.errors import ConfigError
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import torch

    from monai_diffae.data import scans
    from monai_diffae.latents import directions as lines

if TYPE_CHECKING:
    Floats = npt.NDArray[Any]

COLUMNS = (
    "label",
    "how",
    "num_changed",
    "num_cases",
    "share",
    "low",
    "high",
    "random_share",
    "excess",
    "excess_low",
    "excess_high",
    "control_share",
    "control_found",
    "found",
)
_LEAST_SHARE = 0.05  # of decisions; a classifier that changes fewer has no shortcut that matters
_CLEAR = 0.25  # upper end of the interval of a small effect: 1 decision of 20
_LEAST_VISIBLE = 0.05  # of a scan's range: mean change under a marker, else the scan has it already
_HALF = 0.5  # of the way to the pasted marker, from which a control that looks for the marker alone decides otherwise


def read_marker(path: Path) -> Floats:
    """A grey marker (1, *S): nonzero values are pasted; a mask of 0 and 1 pastes the scan's highest value."""
    return scans.read_scan(path, scans.ScanNeeds(channels=1, colour="grey")).array


def pasted(scan: Floats, marker: Floats) -> Floats | None:
    """A scan (C, *S) with a marker, which is resampled to its size; None if the scan looks like this already."""
    if marker.ndim != scan.ndim:
        raise ConfigError(f"paste: the marker has {marker.ndim - 1} dimensions, the scan {scan.ndim - 1}; use the same")
    resampled = torch.nn.functional.interpolate(torch.from_numpy(marker)[None], scan.shape[1:], mode="nearest-exact")
    values, span = resampled[0].numpy(), float(np.ptp(scan))
    is_pasted = np.broadcast_to(values.any(axis=0), scan.shape)
    if not is_pasted.any():
        raise ConfigError("paste: nothing is left of the marker at the size of a scan; use a larger marker")
    changed = np.where(is_pasted, scan.max() if set(np.unique(marker)) <= {0, 1} else values, scan)
    return changed if np.abs(changed - scan)[is_pasted].mean() > _LEAST_VISIBLE * span else None


def paste_rows(case: ScoredCase, start: float, markers: Mapping[str, Floats]) -> Iterator[dict[str, Any]]:
    """The value of a case with each marker pasted, and without; no row if its scan looks like this already."""
    for name, marker in markers.items():
        if (array := pasted(case.native.scan.array, marker)) is not None:
            yield {"label": name, "how": "paste", "values": [case.stored_value(array), start], "control": None}


@dataclass(frozen=True)
class DirectTest:
    """Moves a case along the direction of one label at a time, and scores the files."""

    directions: Sequence[latents.Direction]
    training: Floats  # z_sem (N, D) of the training cases
    markers: Mapping[str, Floats]  # by the name of a label, or another name

    def moves(self, z_sem: Floats, random: Floats) -> Floats:
        """z_sem (2 L, D): the case moved to the other side of each direction, and as far along ``random``.

        Args:
            z_sem: that of the case, (1, D).
            random: a direction (D,) in normalised z_sem, of length 1.
        """
        moved = [z_sem[:0]]
        for direction in self.directions:
            distances, (distance,) = direction.distance(self.training), direction.distance(z_sem)
            others = distances[(distances > direction.boundary) != (distance > direction.boundary)]
            step = ((others.mean() if len(others) else direction.boundary) - distance) * direction.pattern
            moved += [direction.statistics.moved(z_sem, each) for each in (step, random * np.linalg.norm(step))]
        return np.concatenate(moved)

    def rows(self, case: ScoredCase, arrays: Sequence[Floats]) -> Iterator[dict[str, Any]]:
        """The values of a case after each change; ``arrays`` in the scan's units belong to :meth:`moves`."""
        scan = case.native.scan.array
        for i, direction in enumerate(self.directions):
            changed, control = arrays[2 * i : 2 * i + 2], None
            marker = self.markers.get(direction.target)
            if marker is not None and (target := pasted(scan, marker)) is not None:
                start, end, *images = (
                    case.users_model.scaled(case.native, torch.from_numpy(array)) for array in (scan, target, *changed)
                )
                way = end - start
                control = [float(((image - start) * way).sum() / way.square().sum()) for image in images]
            values = [case.stored_value(array) for array in changed]
            yield {"label": direction.target, "how": "direction", "values": values, "control": control}


def summarise(
    tests: Sequence[Sequence[Mapping[str, Any]]],
    starts: Sequence[float],
    middle: float,
    patients: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    """One row for each label and way of changing it, from the rows of all cases and the values of their scans."""
    rows = []
    for label, how in dict.fromkeys((row["label"], row["how"]) for case in tests for row in case):
        found = [(i, row) for i, case in enumerate(tests) for row in case if (row["label"], row["how"]) == (label, how)]
        flips = np.array([(np.array(row["values"]) > middle) != (starts[i] > middle) for i, row in found], float)
        share = _share(flips, [patients[i] for i, _ in found], seed)
        controls = [(i, row["control"]) for i, row in found if row["control"] is not None]
        control = None
        if controls:
            flips = np.array([values for _, values in controls], float) >= _HALF
            control = _share(flips.astype(float), [patients[i] for i, _ in controls], seed)
        rows.append(
            {
                "label": label,
                "how": how,
                **asdict(share),
                "control_share": control and control.share,
                "control_found": control and _is_found(control),
                "found": _is_found(share),
            }
        )
    return rows


def _share(flips: Floats, patients: Sequence[str], seed: int) -> lines.ChangeShare:
    """The share of the first column (N, 2), beside that of the second, of random or no changes."""
    return lines.ChangeShare.of(flips[:, 0], flips[:, 1], patients, seed)


def _is_found(share: lines.ChangeShare) -> bool:
    return share.excess_low > _LEAST_SHARE


def sentences(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the tests say; that there is no shortcut, only where a control that has one was found."""
    untested: dict[bool, list[str]] = {True: [], False: []}  # by whether there is a control
    for row in rows:
        if not (row["found"] or row["control_found"] or row["how"] == "paste"):
            label = "{label} ({num_changed} of {num_cases})".format(**row)
            untested[row["control_share"] is not None].append(label)
            continue
        how = "pasting" if row["how"] == "paste" else "moving along"
        chance = "" if row["how"] == "paste" else f"; random changes of this length: {row['random_share']:.0%}"
        text = "{num_changed} of {num_cases} decisions ({share:.0%}, {low:.0%} to {high:.0%}".format(**row)
        verdict = "too few scans to say more"
        if row["found"]:
            verdict = "your model uses it, or what changes with it"
        elif row["high"] <= _CLEAR:
            verdict = "your model hardly uses this marker"
            if row["control_found"]:
                verdict = f"no shortcut found; a control that looks for it alone changes in {row['control_share']:.0%}"
        yield f"{how} {row['label']} changes {text}{chance}): {verdict}"
    if untested[True]:
        yield (
            f"decisions that change along {', '.join(untested[True])}: this says nothing, as a control that looks for "
            "the pasted marker alone is missed, too: the bundle cannot draw it"
        )
    if untested[False]:
        yield (
            f"decisions that change along {', '.join(untested[False])}: this says nothing without a control, which "
            "needs a picture of the label (paste)"
        )
