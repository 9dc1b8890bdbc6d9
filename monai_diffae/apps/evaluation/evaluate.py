"""The command ``evaluate``: how good are a bundle's reconstructions, its synthetic images and its z_sem?"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult, failed_cases, finished, run_once
from monai_diffae.apps.settings import Decoding, Reading, Run, Seed, Split
from monai_diffae.diffusion.settings import DecoderName, SolverName
from monai_diffae.errors import ConfigError, OmittableError, one_line

if TYPE_CHECKING:
    from monai_diffae.apps.evaluation.quality import EvaluatedBundle

logger = logging.getLogger(__name__)


@Parameter(name="*", group=Group("Cases", sort_key=2))
@dataclass(frozen=True)
class HeldOut:
    """Which cases of a cohort are evaluated: by default held-out ones only."""

    split: Split = "test"
    """Use the cases of this split."""
    limit: Annotated[int, Ge(1)] = 64
    """Use at most this many cases, evenly spread over the split."""
    not_held_out: bool = False
    """Also accept cases that may have been trained on; the results then say so."""


@Parameter(name="*", group=Group("Decoding", sort_key=3))
@dataclass(frozen=True)
class Conditions:
    """Under which conditions images are inverted and decoded: every solver with every number of steps.

    They are for the exact decoder. The fast one has its own steps, and x_T of the bundle's inversion.
    """

    steps: Sequence[Annotated[int, Ge(1)]] = (10, 20, 50, 100)
    """Network evaluations for decoding, and as many for inversion; one line of the tables for each."""
    solvers: Sequence[SolverName] = ()
    """Solvers of the probability-flow ODE; by default the bundle's."""
    # without n_tokens, cyclopts takes one value of a union if another option follows
    decoder: Annotated[Sequence[DecoderName] | DecoderName, Parameter(n_tokens=-1, show_choices=False)] = ()
    """``exact``, the ``fast`` one that ``distill`` trains, or both side by side; by default ``exact``."""
    draws: Annotated[int, Ge(1)] = 2
    """How many x_T each image is decoded with from z_sem alone."""
    num_images: Annotated[int, Ge(0)] = 64
    """Synthetic images to generate if the bundle has a latent DDIM; 0: none."""
    num_codes: Annotated[int, Ge(0)] = 2000
    """Most held-out and most training cases to encode for the figures of z_sem and the search for copies; 0: none."""

    @property
    def decoders(self) -> list[DecoderName]:
        """The names in ``decoder``; none: the bundle's."""
        return [self.decoder] if isinstance(self.decoder, str) else list(self.decoder)

    @property
    def decoding(self) -> Decoding:
        """How to open bundles, so that all decoders can be used."""
        return Decoding(decoder="fast" if "fast" in self.decoders else next(iter(self.decoders), None))


@Parameter(name="*", group=Group("Judges", sort_key=4))
@dataclass(frozen=True)
class Weights:
    """Weights of the networks that judge images. Nothing is downloaded."""

    alexnet: Path | None = None
    """AlexNet's weights for LPIPS; by default where torch keeps downloaded weights (TORCH_HOME)."""
    radimagenet: Path | None = None
    """A ResNet-50 of RadImageNet, whose features FID, KID, precision and recall then use, too."""

    def check(self) -> None:
        """Check that the files exist.

        Raises:
            ConfigError: one does not.
        """
        for name, file in (("alexnet", self.alexnet), ("radimagenet", self.radimagenet)):
            if file is not None and not file.is_file():
                raise ConfigError(f"{name}: there is no file {file.name}; check the path, or omit it")

    @property
    def checksums(self) -> dict[str, str]:
        """The checksums of the given files."""
        from monai_diffae.data.file_checksums import file_checksum

        files = {"alexnet": self.alexnet, "radimagenet": self.radimagenet}
        return {name: file_checksum(file) for name, file in files.items() if file is not None}


@dataclass(frozen=True)
class EvaluateResult(CommandResult):
    """The result of :func:`evaluate`.

    Attributes:
        folder: holds ``evaluation.json``, ``tables.md``, ``tables/`` and ``cases.csv``.
        content: what ``evaluation.json`` holds.
        num_failed: cases that could not be read, listed in ``evaluation_failures.csv``.
        skipped: whether the results were complete already.
    """

    folder: Path
    content: dict[str, Any] = field(repr=False)
    num_failed: int
    skipped: bool = False

    def lines(self) -> Iterator[str]:
        """One table per kind of result, then the folder."""
        from monai_diffae.apps.evaluation.quality.terminal import result_lines

        yield from result_lines(self.content["rows"])
        yield str(self.folder)

    def figures(self) -> dict[str, Any]:
        """The content of ``evaluation.json``."""
        return self.content

    @property
    def incomplete(self) -> str | None:
        """How many cases failed, and which bundles were left out."""
        bundles = [each["bundle"] for each in self.content["omitted"] if each["metric"] == "all"]
        lines = [failed_cases(self.num_failed, self.content["num_cases"], "evaluation_failures.csv")]
        lines += [f"{name} is left out" for name in bundles]
        return "; ".join(line for line in lines if line) or None


@command
def evaluate(
    out: Path,
    *,
    bundle: Sequence[Path] | Path,
    cohort: Path,
    seed: Seed = 0,
    held_out: HeldOut = HeldOut(),
    conditions: Conditions = Conditions(),
    weights: Weights = Weights(),
    reading: Reading = Reading(),
    run: Run = Run(),
) -> EvaluateResult:
    """Measure reconstructions, synthetic images and z_sem on held-out cases, for one bundle or several side by side.

    ``out/tables.md`` has the tables in Markdown, ``out/tables/`` as CSV, and ``out/evaluation.json`` everything.
    ``reconstruction`` is from both codes: ``mse``, ``psnr``, ``ssim``, ``ms_ssim`` and ``lpips``, with ``x_T_std`` and
    ``x_T_neighbor_correlation`` (1 and 0 for perfect noise). ``z_sem_only`` is from z_sem alone with sampled x_T: the
    same metrics, and ``diversity``, the standard deviation of a voxel over several x_T. Each value is a mean over the
    cases with a 95 % interval over the patients. ``out/cases.csv`` has one row per case and condition.

    ``generation`` compares synthetic images of the latent DDIM with held-out cases (``fid``, ``kid``, ``mmd``,
    ``precision``, ``recall``) and with the training set (``copying_ratio``). ``z_sem`` has the use of z_sem by noise
    level, its dimensions, MONAI's indicators of collapse, and DCI if the known factors of the virtual cohort are given.

    With several bundles, ``differences`` in ``evaluation.json`` compares each with the first one, case by case. An
    interrupted run resumes. Several processes started by ``torchrun`` share the reconstructions, which take most of the
    time; the first one writes the results, the same as those of one process.

    Args:
        out: Folder for the results.
        bundle: Folders of trained bundles.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        seed: Random seed of x_T, a function of the seed, the case's id and the number of the draw.
        held_out: Which cases.
        conditions: How to invert and decode.
        weights: Networks that judge images.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The tables.

    Raises:
        ConfigError: an argument is out of range, no bundle is trained, the cases may have been trained on, or ``out``
            holds results made from other things.
        CohortError: there is no held-out case.

    Example:
        >>> evaluate("out", bundle="bundle", cohort="cohort.csv", steps=[0])
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: steps: 0 is below 1
    """
    if held_out.split == "train" and not held_out.not_held_out:
        raise ConfigError("split: train has the cases that the bundle was trained on; choose test, or set not_held_out")
    weights.check()
    from monai_diffae.apps.evaluation.quality import SUMMARY, EvaluatedBundle, Evaluation
    from monai_diffae.apps.processes import this_process

    folders, process = [bundle] if isinstance(bundle, Path) else list(bundle), this_process()
    open_one = partial(
        EvaluatedBundle.open, cohort=cohort, held_out=held_out, decoding=conditions.decoding, reading=reading, run=run,
        device=process.device,
    )  # fmt: skip
    bundles, omitted = _open(folders, open_one)
    evaluation = Evaluation(bundles, conditions, held_out, weights, seed, out, process, omitted)
    made_from = {
        "bundles": {each.name: each.made_from for each in bundles},
        "steps": list(conditions.steps), "solvers": list(conditions.solvers), "draws": conditions.draws,
        "num_images": conditions.num_images, "num_codes": conditions.num_codes,
        "split": held_out.split, "limit": held_out.limit, "not_held_out": held_out.not_held_out, "seed": seed,
        **({"decoder": conditions.decoders} if conditions.decoders else {}), **weights.checksums,
    }  # fmt: skip

    def make() -> Mapping[str, Any]:
        return evaluation.run(run.overwrite)

    results = [out / SUMMARY, out / "tables.md", out / "cases.csv"]
    if process.rank:  # the first process gathers what this one measures
        if finished(out / "evaluate.json", results, made_from, overwrite=run.overwrite) is None:
            evaluation.measure_share(run.overwrite)
        return EvaluateResult(out, {"rows": [], "omitted": [], "num_cases": 0}, 0)
    figures, skipped = run_once(out / "evaluate.json", results, made_from, make, overwrite=run.overwrite)
    return EvaluateResult(out, json.loads((out / SUMMARY).read_text()), figures["num_failed"], skipped)


def _open(
    folders: Sequence[Path], open_one: Callable[[Path, str], EvaluatedBundle]
) -> tuple[list[EvaluatedBundle], list[dict[str, Any]]]:
    """The bundles that can be evaluated, and why the others cannot.

    Raises:
        OmittableError: no bundle can be evaluated.
        UnsafeInputError: a bundle has code of its own that is not trusted, or unsafe weights.
    """
    from monai_diffae.apps.evaluation.quality import unique_names

    bundles: list[EvaluatedBundle] = []
    errors: dict[str, OmittableError] = {}
    for folder, name in zip(folders, unique_names(folders), strict=True):
        try:
            bundles.append(open_one(folder, name))
        except OmittableError as error:
            errors[name] = error
    if not bundles:
        raise next(iter(errors.values()))
    omitted = [{"bundle": name, "metric": "all", "reason": one_line(each)} for name, each in errors.items()]
    for omission in omitted:
        logger.warning("%(bundle)s is left out: %(reason)s", omission)
    return bundles, omitted
