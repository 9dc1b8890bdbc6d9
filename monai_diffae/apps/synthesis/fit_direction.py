"""The command ``fit-direction``: fit the direction in z_sem along which a label increases."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Seed
from monai_diffae.apps.synthesis.directions import is_direction, json_content
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.errors import ConfigError, OtherResultsError

Kind = Literal["classes", "numbers"]

logger = logging.getLogger(__name__)


@command
def fit_direction(
    embeddings: Path,
    out: Path,
    *,
    target: str,
    positive: str | None = None,
    kind: Kind | None = None,
    max_cases: Annotated[int, Ge(4)] | None = None,
    seed: Seed = 0,
    overwrite: bool = False,
) -> Result:
    """Fit the direction in z_sem along which a label increases, for edit, grade and generate.

    The direction is fitted to normalised z_sem of the training cases, or of all cases if the table has no split: by
    logistic regression for two classes, by ridge regression for a number. Labels with two values are classes; numbers
    with more values are a number, unless ``positive`` or ``kind`` says otherwise. The score is that of nested
    cross-validation over patients; a warning is logged if its interval includes chance.

    Args:
        embeddings: Table of embeddings, written by ``embed``.
        out: The direction file, ``.json``.
        target: A label column: two classes, or numbers.
        positive: The class that the direction points to; by default the larger value, or the one that sorts last. With
            more than two classes, it is compared with all others.
        kind: Whether the label is ``classes`` or ``numbers``; by default as above.
        max_cases: Use at most this many labelled cases, equally many per class, for few-shot generation.
        seed: Random seed of the cross-validation's folds, and of the choice of cases.
        overwrite: Replace an existing direction.

    Returns:
        The file; ``direction``, which is in it; ``score``, with its interval from ``low`` to ``high``.

    Raises:
        CohortError: the table cannot be used, or has splits and no training case.
        ConfigError: the label column does not exist, its labels give no direction, or ``out`` exists already.

    Example:
        >>> fit_direction("no.parquet", "age.json", target="age")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: no.parquet: there is no such file; make it with monai-diffae embed
    """
    from monai_diffae.apps.provenance import check_z_sem, origin_of, recorded_preprocessing
    from monai_diffae.data.atomic import write_json
    from monai_diffae.data.embeddings import label_columns, read_training_rows, z_matrix
    from monai_diffae.latents import fit_direction as fit

    table = read_training_rows(embeddings)
    check_z_sem(embeddings)
    labels = label_columns(table)
    if target not in labels:
        raise ConfigError(f"target: there is no label column '{target}'; choose from: {', '.join(labels) or 'none'}")
    patients = table["patient"].tolist() if "patient" in table else None
    direction = fit(
        z_matrix(table), table[target].tolist(), target=target, model=origin_of(embeddings)["model"], groups=patients,
        positive=positive, kind=kind or "auto", max_cases=max_cases, seed=seed,
    )  # fmt: skip
    direction = replace(direction, preprocessing=recorded_preprocessing(table))
    content = direction.to_json()
    if out.exists() and not (overwrite and is_direction(out)) and json_content(out) != content:
        error, remedy = (OtherResultsError, "set overwrite, or ") if is_direction(out) else (ConfigError, "")
        raise error(f"{out.name}: exists and is not this direction; {remedy}choose another out")
    if direction.num_omitted:
        logger.info("%d cases without the label '%s' are omitted", direction.num_omitted, target)
    direction.warn_if_chance()
    write_json(out, content)
    log_to_open_run({f"{target}_score": direction.score}, [], "directions")
    keys = ("target", "kind", "classes", "score", "low", "high", "regularisation", "num_cases", "num_omitted")
    what = f"from {direction.classes[0]} to {direction.classes[1]}" if direction.classes else "a number"
    note = (
        f"{target} ({what}): cross-validated {direction.score_text}, {direction.num_cases} training cases, "
        f"{direction.num_omitted} without the label omitted"
    )
    return Result(out, {key: content[key] for key in keys}, [note], content={"direction": direction})
