"""The command ``combine``: one image from the codes of one or two cases, moved along directions and components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from cyclopts import Group, Parameter, Token

from monai_diffae.apps.command import command
from monai_diffae.apps.results import FolderResult, remove_images, run_once
from monai_diffae.apps.settings import Choice, Decoding, Reading, Seed, UnbatchedRun
from monai_diffae.apps.synthesis.edit import Detail


def _strengths(type_: Any, tokens: Sequence[Token]) -> dict[str, float]:
    """``sex.json=1.5 age.json=-2`` as a mapping."""
    strengths: dict[str, float] = {}
    for token in tokens:
        name, _, value = token.value.rpartition("=")
        if not name:
            raise ValueError(f"{token.value!r} is not of the form name=strength")
        strengths[name] = float(value)
    return strengths


Strengths = Annotated[Mapping[str, float], Parameter(accepts_keys=False, n_tokens=-1, converter=_strengths)]


@Parameter(name="*", group=Group("Codes", sort_key=2))
@dataclass(frozen=True)
class Mixture:
    """Which other codes are mixed with those of the case."""

    blend: str | None = None
    """Id of a second case: z_sem is interpolated linearly, x_T spherically."""
    weight: Annotated[float, Ge(0), Le(1)] = 0.5
    """How much of the second case: 0 none, 1 all; used only with ``blend``."""
    noise_of: str | None = None
    """Id of the case whose x_T is used instead."""
    noise_seed: Seed | None = None
    """Use Gaussian noise of this random seed as x_T instead."""


@Parameter(name="*", group=Group("Codes", sort_key=2))
@dataclass(frozen=True)
class Moves:
    """How z_sem is moved, in standard deviations of the training cases."""

    directions: Strengths = field(default_factory=dict)
    """Direction files and how far to move along each, e.g. ``sex.json=1.5``."""
    components: Strengths = field(default_factory=dict)
    """Numbers of principal components, from 1, and how far to move along each, e.g. ``1=-2 3=0.5``."""
    embeddings: Path | None = None
    """Table of embeddings that the components are computed from; required with ``components``."""


@command
def combine(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    case: str,
    mixture: Mixture = Mixture(),
    moves: Moves = Moves(),
    detail: Detail = "model",
    decoding: Decoding = Decoding(),
    reading: Reading = Reading(),
    run: UnbatchedRun = UnbatchedRun(),
) -> FolderResult:
    """Make one image from the codes of a case: moved, blended with another case, or with another x_T.

    This is what the page of ``explore`` shows, as a command. z_sem is that of the case, blended with that of a second
    case, then moved along directions and principal components. x_T is that of the case, blended as well, or that of
    another case, or noise. ``out/images/`` gets the image in the case's own space.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        case: Id of the case.
        mixture: Which other codes are used.
        moves: How z_sem is moved.
        detail: ``model`` writes what the model decodes; ``own`` adds the change to the scan, which keeps its own detail
            (only with the case's own x_T, without ``blend``).
        decoding: How to invert and decode.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The folder.

    Raises:
        ConfigError: an argument cannot be used, the bundle is not trained, a direction or the embeddings belong to
            another model, or ``out`` holds results of other inputs.
        CohortError: a case does not exist.
        ScanError: a case cannot be read.

    Example:
        >>> combine("bundle", "cohort.csv", "out", case="case-1", components={"1": 2.0})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: embeddings: the components are computed from them; give the table, or omit ...
    """
    from monai_diffae.apps.session import Session
    from monai_diffae.apps.synthesis.combination import Axes, Combination, write_combined

    combination = Combination.of(mixture, moves)
    combination.check_detail(detail)
    axes = Axes.read(moves)
    session = Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run.batched)
    axes.check_fits(session.trained, moves.embeddings)
    cases = {name: session.choose(Choice(cases=(name,)))[0] for name in (case, *combination.other_cases)}
    made_from = session.made_from(list(cases.values()), **combination.made_from(), **axes.made_from, detail=detail)
    images = out / "images"

    def make() -> Mapping[str, Any]:
        opened = {name: session.open_case(each) for name, each in cases.items()}
        own = opened[case]
        image = own.decode(*combination.codes(case, opened, axes))
        difference = image - own.decode(own.z_sem, own.x_T) if detail == "own" else None
        remove_images(images)
        write_combined(images / cases[case].file_name, cases[case], own, image, difference)
        return {"num_images": 1}

    run_once(out / "combined.json", [images], made_from, make, overwrite=run.overwrite)
    return FolderResult(out)
