"""The command ``traverse``: move along the principal components of z_sem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae import bundle as bundles
from monai_diffae import latents, pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.record import remove_images, run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Choice, Decoding, Numbers, Reading, Run, Seed
from monai_diffae.apps.synthesis.fit_direction import STRENGTHS, strength_names, strength_titles
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.data.progress import track
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import ConfigError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.apps import table_origin
    from monai_diffae.data import embeddings as tables


@Parameter(name="*", group=Group("Components", sort_key=2))
@dataclass(frozen=True)
class Components:
    """Which principal components are traversed."""

    num_components: Annotated[int, Ge(1)] = 3
    """Number of components, those with the largest variance first."""
    components: Sequence[Annotated[int, Ge(1)]] = ()
    """Numbers of single components, from 1, instead of the first ones."""

    @property
    def numbers(self) -> list[int]:
        """The numbers of the components, from 1."""
        return sorted(set(self.components)) or list(range(1, self.num_components + 1))


@command
def traverse(
    bundle: Path,
    embeddings: Path,
    out: Path,
    *,
    along: Components = Components(),
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

    The components are those of the training cases' normalised z_sem. The traversal starts at a case, with its own x_T,
    or at the mean; an image is then the mean over ``num_noises`` noise images x_T, the same for all. ``out/images/``
    gets the images in the model's grid, named by component and strength. ``out/traversal.png`` has one row per
    component, ``out/components.csv`` their standard deviation and their share of the variance.

    Args:
        bundle: Folder of a trained bundle.
        embeddings: Table of embeddings, written by ``embed`` with this bundle.
        out: Folder for the results.
        strengths: Positions along a component, in standard deviations of the training cases, e.g. ``-2,0,2``.
        num_noises: Number of noise images that an image is averaged over; not used with a case.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan that has the case.
        case: Id of the case to start from; by default the mean z_sem.
        seed: Random seed of the noise; not used with a case.

    Returns:
        The folder, and ``explained``: each component's share of the variance.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained, another model made the embeddings, or
            ``out`` holds results of other inputs.
        CohortError: the table of embeddings cannot be used, or the case does not exist.
    """
    if (cohort is None) != (case is None):  # without a case, the mean would be traversed
        raise ConfigError("case: give the case to start from together with the cohort that has it, or omit both")
    strength_names(strengths)  # refuses equal names before anything is loaded
    z_train = tables.z_matrix(tables.read_training_rows(embeddings))
    table_origin.check_same_model(embeddings, bundle)
    if cohort is None or case is None:
        session = None
        trained = sessions.open_bundle(bundle, decoding=decoding, run=run)
        made_from = {**sessions.made_from_bundle(trained, run), "cases": None, "num_noises": num_noises, "seed": seed}
    else:
        session = sessions.Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run)
        cases = session.choose(Choice(cases=(case,)))
        trained, made_from = session.trained, session.made_from(cases)
    table_origin.warn_of_other_preprocessing(embeddings, trained)
    numbers = along.numbers
    made_from |= {
        "embeddings": file_checksum(embeddings),
        "num_components": along.num_components,
        "strengths": list(strengths),
        **({"components": numbers} if along.components else {}),
    }
    axes = latents.principal_components(z_train, count=numbers[-1])
    picture = out / "traversal.png"

    def make() -> Mapping[str, Any]:
        if session is None:  # an image is the mean over all x_T
            x_T = image_noise(trained.x_T_shape, seed, list(range(num_noises))).to(trained.device)
            codes = axes.statistics.mean[None], x_T, ".png"
        else:
            coded = next(session.coded(session.read(cases, out, named=True), "inverting the case"))
            codes = coded.z_sem.cpu().numpy(), coded.x_T, coded.case.file
        images = _traversed(trained, axes, numbers, strengths, codes[:2], run.batch_size)
        remove_images(out / "images")
        for number, row in images.items():
            for name, image in zip(strength_names(strengths), row, strict=True):
                file = out / "images" / f"{number:03d}_{name}"
                trained.write_image(file, image, codes[2])
        rows = {f"{number}: {axes.explained[number - 1]:.0%}": trained.shown(row) for number, row in images.items()}
        titles = strength_titles(strengths)
        write_atomic(picture, lambda path: pictures.draw_mosaic(rows, path, titles))
        shown = [number - 1 for number in numbers]
        columns = {"component": numbers, "std": axes.stds[shown], "explained": axes.explained[shown]}
        write_csv(out / "components.csv", pd.DataFrame(columns))
        log_to_open_run({}, [picture], "traversal")
        return {"explained": [float(axes.explained[number - 1]) for number in numbers]}

    results = [picture, out / "components.csv", out / "images"]
    figures, skipped = run_once("traverse", out, results, made_from, make, overwrite=run.overwrite)
    explained = zip(numbers, figures["explained"], strict=True)
    notes = [f"component {number} explained {share:.4f}" for number, share in explained]
    return Result(out, figures, notes, skipped=skipped)


def _traversed(
    trained: bundles.TrainedBundle,
    components: latents.PrincipalComponents,
    numbers: Sequence[int],
    strengths: Sequence[float],
    codes: tuple[npt.NDArray[np.float32], torch.Tensor],
    batch_size: int,
) -> dict[int, torch.Tensor]:
    """The images (A, C, *S) along each component, from z_sem (1, D), and the mean over x_T (N, C, *S)."""
    z_start, x_T = codes
    x_Ts = x_T.repeat(len(strengths), *[1] * (x_T.ndim - 1))
    rows: dict[int, torch.Tensor] = {}
    for number in track(numbers, f"traversing {counted(len(numbers), 'component')}"):
        z_sem = torch.from_numpy(components.traverse(z_start, number - 1, strengths)).to(x_T.device)
        images = sessions.decode_in_batches(trained, z_sem.repeat_interleave(len(x_T), dim=0), x_Ts, batch_size)
        rows[number] = images.unflatten(0, (len(strengths), len(x_T))).mean(dim=1)
    return rows
