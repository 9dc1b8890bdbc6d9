"""The command ``vary``: decode the z_sem of a case with different x_T."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from monai_diffae import pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.record import remove_images, run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Choice, Decoding, Reading, Seed, UnbatchedRun
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import write_atomic
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.lazy import on_first_use

with on_first_use:
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.data import scans
    from monai_diffae.transforms import writing

_IN_PICTURE = 8


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
) -> Result:
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

    Returns:
        The folder, and ``mean_std``: the standard deviation over the variations, averaged over the image, in the
        model's range.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained, or ``out`` holds results of other inputs.
        CohortError: the case does not exist, or cannot be read.
    """
    session = sessions.Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run.batched)
    cases = session.choose(Choice(cases=(case,)))
    made_from = session.made_from(cases, num_images=num_images, seed=seed)
    shape, is_colour = session.trained.image_shape, session.trained.is_colour
    picture, suffix = out / "variations.png", writing.image_suffix(shape, cases[0].file, is_colour)
    results = [picture, out / f"mean{suffix}", out / "std.nii.gz", out / "images"]

    def make() -> Mapping[str, Any]:
        coded = next(session.coded(session.read(cases, out, named=True), "inverting the case"))
        figures = {"mean_std": _write_variations(session, coded, num_images, seed, out)}
        log_to_open_run(figures, [picture], "variations")
        return figures

    figures, skipped = run_once("vary", out, results, made_from, make, overwrite=run.overwrite)
    return Result(out, figures, [f"mean_std {figures['mean_std']:.6g}"], skipped=skipped)


def _write_variations(
    session: sessions.Session, coded: sessions.CodedCase, num_images: int, seed: int, out: Path
) -> float:
    """Write the variations, their mean, standard deviation and picture; return the mean standard deviation."""
    trained = session.trained
    x_T = image_noise(trained.x_T_shape, seed, list(range(num_images))).to(trained.device)
    images = session.decode(coded.z_sem, x_T)
    mean, std = images.mean(dim=0, keepdim=True), images.std(dim=0, keepdim=True)
    remove_images(out / "images")
    for suffix in (".png", ".nii.gz"):  # the mean of an earlier case may have the other suffix
        (out / f"mean{suffix}").unlink(missing_ok=True)
    files = {f"images/{i:03d}": image for i, image in enumerate(images)} | {"mean": mean[0]}
    for name, image in files.items():
        trained.write_image(out / name, image, coded.case.file)
    scans.write_scan(out / "std.nii.gz", std[0].cpu().numpy(), trained.grid_affine)
    reconstruction = session.decode(coded.z_sem, coded.x_T)
    largest = float(std.max())
    std_in_colours = pictures.in_colours(std, largest, "magma", trained.is_colour)
    rows = {
        "input, own x_T": trained.shown(torch.cat([coded.image, reconstruction])),
        "new x_T": trained.shown(images[:_IN_PICTURE]),
        f"mean, std (to {largest:.2f})": torch.cat([trained.shown(mean), std_in_colours]),
    }
    write_atomic(out / "variations.png", lambda path: pictures.draw_mosaic(rows, path))
    return float(std.mean())
