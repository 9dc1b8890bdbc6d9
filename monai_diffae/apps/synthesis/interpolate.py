"""The command ``interpolate``: morph one case into another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from monai_diffae import pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.record import remove_images, run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Choice, Decoding, Reading, Run
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case
from monai_diffae.errors import CohortError
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np

    from monai_diffae.apps import session as sessions
    from monai_diffae.inferers import paths


@command
def interpolate(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    start: str,
    end: str,
    num_images: Annotated[int, Ge(2)] = 9,
    decoding: Decoding = Decoding(),
    reading: Reading = Reading(),
    run: Run = Run(),
) -> Result:
    """Morph one case into another: images between the two, and a strip.

    z_sem is interpolated linearly and x_T spherically (section 4.2 of the paper). ``out/images/`` gets the images in
    the model's grid, named by their position from 0 (``start``) to 1 (``end``). ``out/interpolation.png`` shows them,
    and below them the two scans blended pixel by pixel, for comparison.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        start: Id of the first case.
        end: Id of the last case.
        num_images: Number of images, both ends included.

    Returns:
        The folder.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained, or ``out`` holds results of other inputs.
        CohortError: a case does not exist, or cannot be read.
    """
    session = sessions.Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run)
    cases = session.choose(Choice(cases=(start, end)))
    made_from = session.made_from(cases, num_images=num_images)
    picture, images = out / "interpolation.png", out / "images"

    def make() -> Mapping[str, Any]:
        _write_morph(session, cases, num_images, out)
        log_to_open_run({}, [picture], "interpolation")
        return {"num_images": num_images}

    figures, skipped = run_once("interpolate", out, [picture, images], made_from, make, overwrite=run.overwrite)
    return Result(out, figures, skipped=skipped)


def _write_morph(session: sessions.Session, cases: list[Case], num_images: int, out: Path) -> None:
    """Write the images and the strip."""
    read = session.read(cases, out, named=True)
    if read.failures:
        raise CohortError(f"{read.failures[0].case_id}: {read.failures[0].reason}")
    coded = list(session.coded(read, "inverting 2 cases"))
    first, last = coded[0], coded[-1]
    positions = np.linspace(0, 1, num_images).tolist()
    images = session.decode(paths.lerp(first.z_sem, last.z_sem, positions), paths.slerp(first.x_T, last.x_T, positions))
    trained, digits = session.trained, max(3, len(str(num_images)))  # digits: enough for names that differ
    remove_images(out / "images")
    for position, image in zip(positions, images, strict=True):
        file = out / "images" / f"{position:.{digits}f}"
        trained.write_image(file, image, first.case.file)
    rows = {"both codes": images, "pixels": paths.lerp(first.image, last.image, positions)}
    rows = {name: trained.shown(row) for name, row in rows.items()}
    titles = [f"{position:.2g}" for position in positions]
    write_atomic(out / "interpolation.png", lambda path: pictures.draw_mosaic(rows, path, titles))
