"""The command ``traverse``: move along the principal components of z_sem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result, log_to_open_run, remove_images, run_once
from monai_diffae.apps.settings import Choice, Decoding, Numbers, Reading, Run, Seed
from monai_diffae.apps.synthesis.directions import STRENGTHS, strength_names, strength_titles
from monai_diffae.errors import ConfigError, counted
from monai_diffae.lazy import latents, np, pd, pictures, torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from monai_diffae.apps.session import Session
    from monai_diffae.bundle import TrainedBundle
    from monai_diffae.data.cases import Case
    from monai_diffae.latents import LatentStatistics, PrincipalComponents


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
) -> Result:
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
        The folder, and ``explained``: each component's share of the variance.

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
    from monai_diffae.data.embeddings import training_z_sem
    from monai_diffae.data.fingerprints import file_checksum

    z_train = training_z_sem(embeddings)
    check_same_model(embeddings, bundle)
    start: _CaseStart | _MeanStart
    if cohort is None or case is None:
        trained = open_bundle(bundle, decoding=decoding, run=run)
        made_from = {**made_from_bundle(trained, run), "cases": None, "num_noises": num_noises, "seed": seed}
        start = _MeanStart(num_noises, seed)
    else:
        session = Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run)
        cases = session.choose(Choice(cases=(case,)))
        trained, made_from = session.trained, session.made_from(cases)
        start = _CaseStart(session, cases[0], out)
    warn_of_other_preprocessing(embeddings, trained)
    made_from |= {
        "embeddings": file_checksum(embeddings), "num_components": num_components, "strengths": list(strengths)
    }  # fmt: skip
    traversal = _Traversal.of(trained, z_train, num_components, strengths, run.batch_size)
    picture = out / "traversal.png"

    def make() -> Mapping[str, Any]:
        traversal.write(start, out)
        log_to_open_run({}, [picture], "traversal")
        return {"explained": [float(share) for share in traversal.components.explained]}

    results = [picture, out / "components.csv", out / "images"]
    figures, skipped = run_once("traverse", out, results, made_from, make, overwrite=run.overwrite)
    notes = [f"component {number} explained {share:.4f}" for number, share in enumerate(figures["explained"], start=1)]
    return Result(out, figures, notes, skipped=skipped)


@dataclass(frozen=True)
class _Codes:
    """Where a traversal starts: z_sem (1, D), x_T (N, C, *S), and the file name that decides the images' format."""

    z_sem: Tensor
    x_T: Tensor
    source: str


@dataclass(frozen=True)
class _MeanStart:
    """Starts at the training cases' mean z_sem, with ``num_noises`` noise images of ``seed`` as x_T."""

    num_noises: int
    seed: int

    def codes(self, trained: TrainedBundle, statistics: LatentStatistics) -> _Codes:
        """The codes of the start; an image is the mean over all x_T."""
        from monai_diffae.diffusion.noise import image_noise

        x_T = image_noise(trained.x_T_shape, self.seed, list(range(self.num_noises))).to(trained.device)
        return _Codes(torch.from_numpy(statistics.mean)[None].to(trained.device), x_T, ".png")


@dataclass(frozen=True)
class _CaseStart:
    """Starts at a case of a session, with its own x_T; ``out`` gets the list of failures."""

    session: Session
    case: Case
    out: Path

    def codes(self, trained: TrainedBundle, statistics: LatentStatistics) -> _Codes:
        """The codes of the start."""
        read = self.session.read([self.case], self.out, named=True)
        coded = next(self.session.coded(read, "inverting the case"))
        return _Codes(coded.z_sem, coded.x_T, self.case.file)


@dataclass(frozen=True)
class _Traversal:
    """A traversal of principal components."""

    trained: TrainedBundle
    components: PrincipalComponents
    strengths: Sequence[float]
    batch_size: int

    @classmethod
    def of(
        cls,
        trained: TrainedBundle,
        z_train: NDArray[np.floating[Any]],
        num_components: int,
        strengths: Sequence[float],
        batch_size: int,
    ) -> _Traversal:
        """Compute the components of the training cases' z_sem ``[N, D]``."""
        components = latents.principal_components(z_train, latents.LatentStatistics.of(z_train), num_components)
        return cls(trained, components, strengths, batch_size)

    def write(self, start: _CaseStart | _MeanStart, out: Path) -> None:
        """Write the images, the picture and the table of components to the folder ``out``."""
        from monai_diffae.data.atomic import write_atomic
        from monai_diffae.data.progress import track
        from monai_diffae.transforms.writing import write_image

        trained, components = self.trained, self.components
        codes = start.codes(trained, components.statistics)
        remove_images(out / "images")
        rows: dict[str, Tensor] = {}
        count = len(components.directions)
        for k in track(range(count), f"traversing {counted(count, 'component')}"):
            images = self._images(codes, k)
            for name, image in zip(strength_names(self.strengths), images, strict=True):
                file = out / "images" / f"{k + 1:03d}_{name}"
                write_image(file, image, trained.model_range, codes.source, trained.grid_affine)
            rows[f"{k + 1}: {components.explained[k]:.0%}"] = images
        titles = strength_titles(self.strengths)
        write_atomic(out / "traversal.png", lambda path: pictures.draw_mosaic(rows, path, trained.model_range, titles))
        columns = {"component": range(1, count + 1), "std": components.stds, "explained": components.explained}
        table = pd.DataFrame(columns)
        write_atomic(out / "components.csv", lambda path: table.to_csv(path, index=False, lineterminator="\n"))

    def _images(self, codes: _Codes, component: int) -> Tensor:
        """Decode one image per strength, the mean over all x_T: (A, C, *S)."""
        from monai_diffae.apps.session import decode_in_batches

        z_start = codes.z_sem.cpu().numpy()
        z_sem = torch.from_numpy(self.components.traverse(z_start, component, self.strengths)).to(codes.x_T.device)
        num_strengths, num_noises = len(z_sem), len(codes.x_T)
        x_T = codes.x_T.repeat(num_strengths, *[1] * (codes.x_T.ndim - 1))
        images = decode_in_batches(self.trained, z_sem.repeat_interleave(num_noises, dim=0), x_T, self.batch_size)
        return images.unflatten(0, (num_strengths, num_noises)).mean(dim=1)
