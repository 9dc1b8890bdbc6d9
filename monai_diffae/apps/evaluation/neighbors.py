"""The command ``neighbors``: the nearest cases in z_sem, and outlier scores."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult, checksum_of, run_once
from monai_diffae.apps.settings import Choice, Decoding, Reading, Seed, UnbatchedRun
from monai_diffae.errors import ConfigError, counted

logger = logging.getLogger(__name__)


@Parameter(name="*", group=Group("Images", sort_key=3))
@dataclass(frozen=True)
class Images:
    """Where the images of the cases are, and what is done with them. Without ``cohort`` no image is read."""

    bundle: Path | None = None
    """Folder of the bundle that made the embeddings; used only with ``cohort``."""
    cohort: Path | None = None
    """The cohort that was embedded: folder, CSV/TSV, MONAI datalist or single scan. Needed for the picture."""
    query_cohort: Path | None = None
    """The cohort of ``queries``; by default ``cohort``."""
    captions: Sequence[str] = ()
    """What ``neighbors.png`` says about a case: ``id`` and names of labels; by default nothing."""
    reconstruction_error: bool = False
    """Also score cases by their reconstruction error; this takes as long as ``reconstruct``."""
    num_reference: Annotated[int, Ge(1)] = 200
    """Training cases that reconstruction errors are compared with."""
    seed: Seed = 0
    """Random seed of the choice of these cases and of the noise for decoding z_sem alone."""


@dataclass(frozen=True)
class NeighborsResult(CommandResult):
    """The result of :func:`neighbors`.

    Attributes:
        folder: holds ``neighbors.csv``, ``outliers.csv`` and, with a cohort, ``neighbors.png``.
        unusual_shares: for each score and split, the share of cases with a p-value below .05: of all cases for
            distances, of the selected cases for reconstruction errors.
        num_cases: number of selected cases.
        num_failed: images that could not be read, listed in ``neighbors_failures.csv``.
        skipped: whether the results were complete already.
    """

    folder: Path
    unusual_shares: dict[str, dict[str, float]]
    num_cases: int
    num_failed: int
    skipped: bool = False

    def lines(self) -> Iterator[str]:
        """The shares of unusual cases, then the folder."""
        for score, shares in self.unusual_shares.items():
            yield from (f"{score}: p < .05 for {share:.1%} of {split}" for split, share in shares.items())
        yield str(self.folder)

    def figures(self) -> dict[str, Any]:
        """The number of cases, and the shares of unusual ones."""
        return {"num_cases": self.num_cases, "unusual_shares": self.unusual_shares}

    @property
    def incomplete(self) -> str | None:
        """How many images could not be read; training cases count, too."""
        if not self.num_failed:
            return None
        return f"{counted(self.num_failed, 'image')} could not be read: see neighbors_failures.csv"


@command
def neighbors(
    embeddings: Path,
    out: Path,
    *,
    k: Annotated[int, Ge(1)] = 5,
    queries: Path | None = None,
    same_patient: bool = False,
    choice: Choice = Choice(),
    images: Images = Images(),
    decoding: Decoding = Decoding(),
    reading: Reading = Reading(),
    run: UnbatchedRun = UnbatchedRun(),
) -> NeighborsResult:
    """Find the nearest cases of other patients in z_sem, and score how unusual each case is.

    z_sem is scaled by the standard deviations of the training cases; distances are Euclidean.

    ``out/neighbors.csv`` has one row per case and neighbor: ``id``, ``rank``, ``neighbor``, ``distance``, and the
    labels of both. ``out/outliers.csv`` has one row per case with several scores: ``distance``, the mean distance to
    the k nearest training cases of other patients; ``whitened``, the same after scaling each direction of z_sem by the
    variation of the training cases; and, with ``reconstruction_error``, ``mse_z_sem`` and ``mse_x_T``, the mean squared
    error of the image decoded from z_sem alone, and with the inverted x_T. ``p_distance`` etc. are p-values: about the
    share of training cases with at least as high a score.

    With ``bundle`` and ``cohort``, ``out/neighbors.png`` shows the first 8 cases with their neighbors. Without
    ``cohort``, no image is read and ``bundle`` is not used: there are no picture and no reconstruction errors.

    Args:
        embeddings: Table of embeddings, written by ``embed``, with training cases; neighbors are searched in all of it.
        out: Folder for the results.
        k: Number of neighbors.
        queries: Another table of the same model; its cases are looked up in ``embeddings``.
        same_patient: Also accept neighbors of the same patient, but never the case itself.
        choice: The cases to look up.
        images: Where the images are.
        decoding: How to invert and decode for the reconstruction errors.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The folder, and the share of unusual cases by each score.

    Raises:
        CohortError: there is no table of embeddings, no training case in it, or no case with such an id.
        ConfigError: an argument is out of range, the tables are of different models, a cohort has no bundle, or ``out``
            holds results made from other things.

    Example:
        >>> neighbors("no.parquet", "out")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: no.parquet: there is no such file; make it with monai-diffae embed
    """
    _check_images(images, queries, decoding, {"columns": reading.columns, "overrides": run.overrides})
    from monai_diffae.apps.evaluation.neighbor_images import CaseImages
    from monai_diffae.apps.evaluation.neighbor_search import NeighborSearch
    from monai_diffae.apps.evaluation.outliers import TrainingCases
    from monai_diffae.data.embeddings import label_columns, training_rows
    from monai_diffae.data.file_checksums import file_checksum
    from monai_diffae.pictures import check_captions

    search = NeighborSearch.open(embeddings, queries, choice, k, same_patient)
    check_captions(images.captions, label_columns(search.table))
    training = TrainingCases.from_rows(training_rows(embeddings))
    case_images = None
    tables = [embeddings] if queries is None else [embeddings, queries]
    if images.cohort is not None:
        case_images = CaseImages.open(images, out, tables, decoding, reading, run.batched)
        case_images.warn_of_differences(search, embeddings, queries)
    made_from = {
        "images": None if case_images is None else case_images.made_from,
        "embeddings": file_checksum(embeddings),
        "queries": None if queries is None else file_checksum(queries),
        "cases": checksum_of(search.cases["id"].tolist()),
        "captions": list(images.captions),
        "k": k,
        "same_patient": same_patient,
    }

    def make() -> Mapping[str, Any]:
        return search.run(training, out, case_images)

    names = ["neighbors.csv", "outliers.csv", *([] if case_images is None else ["neighbors.png"])]
    results = [out / name for name in names]
    figures, skipped = run_once(out / "neighbors.json", results, made_from, make, overwrite=run.overwrite)
    return NeighborsResult(out, figures["unusual_shares"], figures["num_cases"], figures["num_failed"], skipped)


def _check_images(
    images: Images, queries: Path | None, decoding: Decoding, image_settings: Mapping[str, Mapping[str, Any]]
) -> None:
    if images.captions and images.cohort is None:
        raise ConfigError("captions: apply to the picture; also give bundle and cohort, or omit captions")
    unused = next((name for name, value in image_settings.items() if value and images.cohort is None), None)
    if unused is not None:
        raise ConfigError(f"{unused}: applies to a cohort; also give bundle and cohort, or omit {unused}")
    given = [name for name, value in asdict(decoding).items() if value is not None]
    if given and not images.reconstruction_error:
        raise ConfigError(f"{given[0]}: applies to reconstruction_error; set it too, or omit {given[0]}")
    if images.cohort is not None and images.bundle is None:
        raise ConfigError("cohort: its images are read through a bundle; also give bundle")
    if images.reconstruction_error and images.cohort is None:
        raise ConfigError("reconstruction_error: the images must be decoded; also give bundle and cohort")
    if images.query_cohort is not None and (queries is None or images.cohort is None):
        raise ConfigError("query_cohort: applies to queries; also give queries, bundle and cohort, or omit it")
