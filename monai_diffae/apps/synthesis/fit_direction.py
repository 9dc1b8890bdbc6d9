"""The command ``fit-direction``, the files that it writes, and the strengths of moves along directions."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from cyclopts import Parameter

from monai_diffae import bundle as bundles
from monai_diffae import latents
from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Seed
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import write_json
from monai_diffae.errors import ConfigError, OtherResultsError, counted
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import PathLike

with on_first_use:
    from monai_diffae.apps import table_origin
    from monai_diffae.data import embeddings as tables

Kind = Literal["classes", "numbers"]
_LARGEST = 100
STRENGTHS: tuple[float, ...] = (-3, -2, -1, 0, 1, 2, 3)
"""Standard deviations of the training cases."""

logger = logging.getLogger(__name__)


@Parameter(name="*")
@dataclass(frozen=True)
class Fitting:
    """How a direction is fitted to a label."""

    positive: str | None = None
    """The class that the direction points to; by default the larger value, or the one that sorts last. With more than
    two classes, it is compared with all others."""
    kind: Kind | None = None
    """Whether the label is ``classes`` or ``numbers``; by default as above."""
    max_cases: Annotated[int, Ge(4)] | None = None
    """Use at most this many labelled cases, equally many per class, for few-shot generation."""


@command
def fit_direction(
    embeddings: Path,
    out: Path,
    *,
    target: str,
    fitting: Fitting = Fitting(),
    seed: Seed = 0,
    overwrite: bool = False,
) -> Result:
    """Fit the direction in z_sem along which a label increases, for edit, grade and generate.

    The direction is fitted to normalised z_sem of the training cases, or of all cases if the table has no split: by
    logistic regression for two classes, by ridge regression for a number. Labels with two values are classes; numbers
    with more values are a number, unless ``positive`` or ``kind`` says otherwise. The score is that of nested
    cross-validation over patients; a warning is logged if it may be chance.

    Args:
        embeddings: Table of embeddings, written by ``embed``.
        out: The direction file, ``.json``.
        target: A label column: two classes, or numbers.
        seed: Random seed of the cross-validation's folds, and of the choice of cases.
        overwrite: Replace an existing direction.

    Returns:
        The file; ``direction``, which is in it; ``score``, with its interval from ``low`` to ``high``.

    Raises:
        CohortError: the table cannot be used, or has splits and no training case.
        ConfigError: the label column does not exist, its labels give no direction, or ``out`` exists already.
    """
    table = tables.read_training_rows(embeddings)
    table_origin.check_z_sem(embeddings)
    tables.check_labels(table, {"target": [target]})
    patients = table["patient"].tolist() if "patient" in table else None
    direction = latents.fit_direction(
        tables.z_matrix(table),
        table[target].tolist(),
        target=target,
        model=table_origin.origin_of(embeddings)["model"],
        groups=patients,
        positive=fitting.positive,
        kind=fitting.kind or "auto",
        max_cases=fitting.max_cases,
        seed=seed,
    )
    direction = replace(direction, preprocessing=table_origin.recorded_preprocessing(table))
    content = direction.to_json()
    existing = json_content(out) if out.exists() else content
    is_direction = isinstance(existing, dict) and existing.get("format") == content["format"]
    if existing != content and not (overwrite and is_direction):
        error, remedy = (OtherResultsError, "set overwrite, or ") if is_direction else (ConfigError, "")
        raise error(f"{out.name}: exists and is not this direction; {remedy}choose another out")
    if direction.num_omitted:
        logger.info("%s omitted, without the label '%s'", counted(direction.num_omitted, "case"), target)
    direction.warn_if_chance()
    write_json(out, content)
    log_to_open_run({} if direction.score is None else {f"{target}_score": direction.score}, [], "directions")
    keys = ("target", "kind", "classes", "score", "low", "high", "regularisation", "num_cases", "num_omitted")
    what = f"from {direction.classes[0]} to {direction.classes[1]}" if direction.classes else "a number"
    note = (
        f"{target} ({what}): cross-validated {direction.score_text}, {direction.num_cases} training cases, "
        f"{direction.num_omitted} without the label omitted"
    )
    return Result(out, {key: content[key] for key in keys}, [note], content={"direction": direction})


def read_direction(path: PathLike, trained: bundles.TrainedBundle | None = None) -> latents.Direction:
    """Read a direction file; with a bundle, one of another model is refused."""
    if not Path(path).is_file():
        text = f"{Path(path).name}: there is no such file; make it with monai-diffae fit-direction"
        raise ConfigError(text).at(Path(path))
    try:
        direction = latents.Direction.from_json(json_content(Path(path)))
    except ConfigError as error:
        raise ConfigError(f"{Path(path).name}: {error}") from error
    if trained is not None:
        direction.check_fits(trained.sha256, trained.z_channels, trained.preprocessing_sha256)
    return direction


def json_content(path: Path) -> Any:
    """Return the content of a JSON file; None if it cannot be read as JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def strength_names(strengths: Sequence[float]) -> list[str]:
    """The parts of file names that stand for strengths, such as ``-2.00`` and ``+0.50``."""
    names = [f"{strength:+.2f}" for strength in strengths]
    # of two equal names, the later image would replace the earlier one
    if not strengths or max(map(abs, strengths)) > _LARGEST or len(set(names)) < len(names):
        raise ConfigError(
            f"strengths: give different ones from -{_LARGEST} to {_LARGEST} standard deviations, such as -2 and 2; "
            "they are rounded to two digits, as in the images' names"
        )
    return names


def strength_titles(strengths: Sequence[float]) -> list[str]:
    """Return the titles of a picture's columns, one per strength."""
    return [f"{strength:+g}" if strength else "0" for strength in strengths]
