"""The command ``vary``: decode the z_sem of a case with different x_T."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult, log_to_open_run, run_once
from monai_diffae.apps.settings import Choice, Decoding, Reading, Seed, UnbatchedRun


@dataclass(frozen=True)
class VaryResult(CommandResult):
    """The result of :func:`vary`.

    Attributes:
        folder: holds ``images/``, ``mean``, ``std.nii.gz`` and ``variations.png``.
        mean_std: standard deviation over the variations, averaged over the image, in the model's range.
        skipped: whether the results were complete already.
    """

    folder: Path
    mean_std: float
    skipped: bool = False

    def lines(self) -> Iterator[str]:
        """The mean standard deviation, then the folder."""
        yield f"mean_std {self.mean_std:.6g}"
        yield str(self.folder)

    def figures(self) -> dict[str, Any]:
        """The mean standard deviation."""
        return {"mean_std": self.mean_std}


@command
def vary(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    case: str,
    num_images: Annotated[int, Ge(2)] = 16,
    seed: Seed = 0,
    decoding: Decoding = Decoding(),
    reading: Reading = Reading(),
    run: UnbatchedRun = UnbatchedRun(),
) -> VaryResult:
    """Decode the z_sem of a case with new x_T: images with the same meaning and other details.

    This shows what z_sem does not determine (section 4.1 of the paper). ``out/images/`` gets the variations in the
    model's grid, ``out/mean`` their mean, and ``out/std.nii.gz`` their standard deviation per voxel: where it is large,
    the image depends on x_T rather than on z_sem. ``out/variations.png`` shows them.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        case: Id of the case.
        num_images: Number of variations.
        seed: Random seed of the noise. Variation i is a function of the seed and i, to the bit.
        decoding: How to invert and decode.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The folder and the mean standard deviation.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained, or ``out`` holds results of other inputs.
        CohortError: the case does not exist, or cannot be read.

    Example:
        >>> vary("bundle", "cohort.csv", "out", case="case-1", num_images=1)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: num_images: 1 is below 2
    """
    from monai_diffae.apps.session import Session
    from monai_diffae.apps.synthesis.variation import write_variations
    from monai_diffae.transforms.case_images import image_suffix

    session = Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run.batched)
    cases = session.choose(Choice(cases=(case,)))
    made_from = session.made_from(cases, num_images=num_images, seed=seed)
    picture, suffix = out / "variations.png", image_suffix(session.trained.image_shape, cases[0].file)
    results = [picture, out / f"mean{suffix}", out / "std.nii.gz", out / "images"]

    def make() -> Mapping[str, Any]:
        coded = next(session.coded(session.read(cases, out, named=True), "inverting the case"))
        figures = {"mean_std": write_variations(session, coded, num_images, seed, out)}
        log_to_open_run(figures, [picture], "variations")
        return figures

    figures, skipped = run_once(out / "variations.json", results, made_from, make, overwrite=run.overwrite)
    return VaryResult(out, figures["mean_std"], skipped)
