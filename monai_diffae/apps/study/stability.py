"""The command ``stability``: which components of z_sem two models share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from monai_diffae import pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.record import run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Seed, Writing
from monai_diffae.apps.study.cases import StudyCases, StudyChoice
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import write_csv
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import CohortError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from monai_diffae.data import embeddings as tables
    from monai_diffae.latents import representation

logger = logging.getLogger(__name__)

_LEAST_PATIENTS = 20
_SHARED = 0.5  # R2


@command
def stability(
    embeddings: Path,
    out: Path,
    *,
    other: Annotated[Path, Parameter(name=["--other", "--with"])],
    choice: StudyChoice = StudyChoice(),
    seed: Seed = 0,
    writing: Writing = Writing(),
) -> Result:
    """Find which principal components of z_sem another model has, too, such as one trained with another seed.

    Both tables must be of the same cases, which are matched by their ids. ``out/stability.csv`` has one row per
    component of either model: ``r2``, from ``low`` to ``high`` (95 %, bootstrapped over patients), is the share of its
    variance that the other model explains in patients that it was not fitted to, by ridge regression; chance is 0.
    ``out/canonical.csv`` has the canonical correlations of both models, ``out/stability.png`` shows both.

    Args:
        embeddings: Table of embeddings, written by ``embed``.
        out: Folder for the results.
        other: Table of embeddings of the same cases by the other model.
        seed: Random seed of folds and bootstrap.

    Returns:
        The folder; ``first`` and ``second``: of ``total`` components, how many are ``shared`` (the interval of R2 is
        above .5) or ``not_shared`` (below), and the ``share`` of the variance of all of them that the other model
        explains; ``procrustes``, R2 of the first model after a rotation of the second; ``canonical``, the correlations;
        ``cka``, linear and without bias; ``num_cases``, ``num_patients`` and ``num_unmatched`` of each table.

    Raises:
        CohortError: a table cannot be used, has an id twice, or too few patients are in both.
        ConfigError: ``out`` holds results made from other things.
    """
    models = [StudyCases.open(path, choice) for path in (embeddings, other)]
    pair = _matched(*models)
    made_from = {
        "embeddings": file_checksum(embeddings),
        "other": file_checksum(other),
        **asdict(choice),
        "seed": seed,
        "dpi": writing.dpi,
    }

    def make() -> dict[str, Any]:
        num_unmatched = [len(each.rows) - len(pair[0].rows) for each in models]
        return {**_measure(pair, out, seed, writing), "num_unmatched": num_unmatched}

    results = [out / "stability.csv", out / "canonical.csv", *writing.files(out / "stability.png")]
    figures, skipped = run_once("stability", out, results, made_from, make, overwrite=writing.overwrite)
    return Result(out, figures, _sentences(figures), skipped=skipped)


def _matched(first: StudyCases, second: StudyCases) -> tuple[StudyCases, StudyCases]:
    """The cases that two tables share by their ids, in the same order."""
    shared, left, right = np.intersect1d(
        first.rows["id"].to_numpy(str), second.rows["id"].to_numpy(str), return_indices=True
    )
    one, two = replace(first, rows=first.rows.iloc[left]), replace(second, rows=second.rows.iloc[right])
    if (num_patients := len(np.unique(_patients(one, two)))) < _LEAST_PATIENTS:
        raise CohortError(
            f"{first.name} and {second.name}: {counted(num_patients, 'patient')} with the same ids are too few; "
            f"embed the same cohort with both models, with at least {_LEAST_PATIENTS} patients"
        )
    for each in (first, second):
        if num := len(each.rows) - len(shared):
            logger.warning("%s: %s not in the other table, and left out", each.name, counted(num, "case"))
    return one, two


def _patients(first: StudyCases, second: StudyCases) -> npt.NDArray[Any]:
    return (first if "patient" in first.rows else second).patients


def _measure(pair: tuple[StudyCases, StudyCases], out: Path, seed: int, writing: Writing) -> dict[str, Any]:
    """Write the results about two models, and return their figures."""
    z_sem = [np.ascontiguousarray(tables.z_matrix(each.rows)) for each in pair]  # its order decides the last bits
    patients = _patients(*pair)
    codes = [each.axes.statistics.normalise(z).astype(np.float64) for each, z in zip(pair, z_sem, strict=True)]
    scores = [each.axes.coordinates(z) for each, z in zip(pair, z_sem, strict=True)]
    parts, figures = [], {}
    for place, name in enumerate(("first", "second")):
        r2 = representation.explained_variance(scores[place], codes[1 - place], patients, seed)
        value, low, high = r2[:, :-1]
        parts.append(
            pd.DataFrame(
                {
                    "model": name,
                    "component": range(1, len(value) + 1),
                    "explained": pair[place].axes.explained,
                    "r2": value,
                    "low": low,
                    "high": high,
                }
            )
        )
        figures[name] = {
            "shared": int((low > _SHARED).sum()),
            "not_shared": int((high < _SHARED).sum()),
            "total": len(value),
            "share": r2[:, -1].tolist(),
        }
    counts = scores[0].shape[1], scores[1].shape[1]
    value, low, high = representation.canonical_correlations(codes[0], codes[1], patients, counts, seed)
    explained = pd.concat(parts, ignore_index=True)
    correlations = pd.DataFrame({"pair": range(1, len(value) + 1), "correlation": value, "low": low, "high": high})
    write_csv(out / "stability.csv", explained)
    write_csv(out / "canonical.csv", correlations)
    matrix = np.corrcoef(scores[0], scores[1], rowvar=False)[: counts[0], counts[0] :]
    writing.write(out / "stability.png", pictures.draw_stability(explained, correlations, matrix))
    log_to_open_run({}, [out / "stability.png"], "stability")
    return {
        **figures,
        "procrustes": representation.procrustes(codes[0], codes[1], patients, seed).tolist(),
        "canonical": value.tolist(),
        "cka": representation.linear_cka(codes[0], codes[1]),
        "num_cases": len(codes[0]),
        "num_patients": len(np.unique(patients)),
    }


def _sentences(figures: Mapping[str, Any]) -> list[str]:
    """What was found, in plain English."""
    lines = []
    for name, other in (("first", "second"), ("second", "first")):
        each, (share, low, high) = figures[name], (f"{value:.0%}" for value in figures[name]["share"])
        lines.append(
            f"{each['shared']} of {counted(each['total'], 'component')} of the {name} model are shared, "
            f"{each['not_shared']} are not, the others are open; the {other} model explains {share} ({low} to {high}) "
            "of their variance"
        )
    value, low, high = figures["procrustes"]
    strong = sum(each > _SHARED**0.5 for each in figures["canonical"])
    return [
        *lines,
        f"canonical correlations above .71: {strong} of {len(figures['canonical'])}; after a rotation alone, R2 is "
        f"{value:.2f} ({low:.2f} to {high:.2f}); linear CKA {figures['cka']:.2f}; "
        f"{counted(figures['num_cases'], 'case')} of {counted(figures['num_patients'], 'patient')}",
    ]
