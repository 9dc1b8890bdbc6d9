"""The command ``traverse``: images along the principal components of z_sem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult, log_to_open_run, run_once
from monai_diffae.apps.settings import Choice, Decoding, Numbers, Reading, Run, Seed
from monai_diffae.apps.synthesis.strengths import STRENGTHS, strength_names
from monai_diffae.errors import ConfigError


@dataclass(frozen=True)
class TraverseResult(CommandResult):
    """The result of :func:`traverse`.

    Attributes:
        folder: holds ``images/``, ``components.csv`` and ``traversal.png``.
        explained: each component's share of the variance of normalised z_sem, from 0 to 1.
        skipped: whether the results were complete already.
    """

    folder: Path
    explained: list[float]
    skipped: bool = False

    def lines(self) -> Iterator[str]:
        """The share of each component, then the folder."""
        for number, share in enumerate(self.explained, start=1):
            yield f"component {number} explained {share:.4f}"
        yield str(self.folder)

    def figures(self) -> dict[str, Any]:
        """The share of each component."""
        return {"explained": self.explained}


@command
def traverse(
    bundle: Path,
    embeddings: Path,
    out: Path,
    *,
    num_components: Annotated[int, Ge(1)] = 3,
    strengths: Numbers = STRENGTHS,
    num_noises: Annotated[int, Ge(1)] = 4,
    cohort: Path | None = None,
    case: str | None = None,
    seed: Seed = 0,
    decoding: Decoding = Decoding(),
    reading: Reading = Reading(),
    run: Run = Run(),
) -> TraverseResult:
    """Traverse the principal components of z_sem: images of what varies most in a cohort, without labels.

    The components are those of the training cases' normalised z_sem. The traversal starts at their mean, or at a case.
    ``out/images/`` gets the images in the model's grid, named by component and strength. Without a case, an image is
    the mean over ``num_noises`` noise images x_T, the same for all; with a case, it is decoded with the case's own x_T.
    ``out/traversal.png`` has one row per component, ``out/components.csv`` their standard deviation and their share of
    the variance.

    Args:
        bundle: Folder of a trained bundle.
        embeddings: Table of embeddings, written by ``embed`` with this bundle.
        out: Folder for the results.
        num_components: Number of components, those with the largest variance first.
        strengths: Positions along a component, in standard deviations of the training cases, e.g. ``-2,0,2``.
        num_noises: Number of noise images that an image is averaged over; not used with a case.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan that has the case.
        case: Id of the case to start from; by default the mean z_sem.
        seed: Random seed of the noise; not used with a case.
        decoding: How to invert and decode.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The folder and each component's share of the variance.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained, another model made the embeddings, or
            ``out`` holds results of other inputs.
        CohortError: the table of embeddings cannot be used, or the case does not exist.

    Example:
        >>> traverse("bundle", "embeddings.parquet", "out", case="case-1")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: cohort: is required with a case; give the cohort that has it
    """
    if cohort is None and case is not None:
        raise ConfigError("cohort: is required with a case; give the cohort that has it")
    if cohort is not None and case is None:
        raise ConfigError("case: is required with a cohort; give the case to start from, or omit the cohort")
    if cohort is None and reading.columns:
        raise ConfigError("columns: applies to a cohort; give a cohort and a case, or omit columns")
    strength_names(strengths)  # refuses unusable strengths before anything is loaded
    from monai_diffae.apps.provenance import check_same_model, warn_of_other_preprocessing
    from monai_diffae.apps.session import Session, made_from_bundle, open_bundle
    from monai_diffae.apps.synthesis.traversal import CaseStart, MeanStart, Traversal
    from monai_diffae.data.embeddings import training_z_sem
    from monai_diffae.data.file_checksums import file_checksum

    z_train = training_z_sem(embeddings)
    check_same_model(embeddings, bundle)
    start: CaseStart | MeanStart
    if cohort is None or case is None:
        trained = open_bundle(bundle, decoding=decoding, run=run)
        made_from = {**made_from_bundle(trained, run), "cases": None, "num_noises": num_noises, "seed": seed}
        start = MeanStart(num_noises, seed)
    else:
        session = Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run)
        cases = session.choose(Choice(cases=(case,)))
        trained, made_from = session.trained, session.made_from(cases)
        start = CaseStart(session, cases[0], out)
    warn_of_other_preprocessing(embeddings, trained)
    made_from |= {
        "embeddings": file_checksum(embeddings), "num_components": num_components, "strengths": list(strengths)
    }  # fmt: skip
    traversal = Traversal.of(trained, z_train, num_components, strengths, run.batch_size)
    picture = out / "traversal.png"

    def make() -> Mapping[str, Any]:
        traversal.write(start, out)
        log_to_open_run({}, [picture], "traversal")
        return {"explained": [float(share) for share in traversal.components.explained]}

    results = [picture, out / "components.csv", out / "images"]
    figures, skipped = run_once(out / "traversal.json", results, made_from, make, overwrite=run.overwrite)
    return TraverseResult(out, figures["explained"], skipped)
