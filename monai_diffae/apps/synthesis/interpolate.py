"""From one case of a cohort to another: a strip of images along both codes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_diffae.apps.results import log_to_open_run, remove_images, run_once
from monai_diffae.apps.session import checksum_of_cases, open_cohort
from monai_diffae.data.atomic import write_atomic
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.inferers.interpolation import lerp, slerp
from monai_diffae.pictures.mosaic import draw_mosaic
from monai_diffae.transforms.case_images import grid_affine, write_image


@dataclass(frozen=True)
class InterpolateResult:
    """What :func:`interpolate` made.

    Attributes:
        folder: with ``images/``, one a position, and the strip ``interpolation.png``.
        skipped: whether all was there already.
    """

    folder: Path
    skipped: bool = False


def interpolate(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    first: str,
    second: str,
    num_images: int = 9,
    device: str | None = None,
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> InterpolateResult:
    """Morph one case into another: z_sem on a straight line, x_T on the sphere (the paper's section 4.2).

    ``out/images/`` gets the images in the model's grid, named by their place from 0 (the first case) to 1.
    ``out/interpolation.png`` is the strip, with the two scans blended pixel by pixel below it, to compare with.

    Args:
        bundle: a trained bundle's folder.
        cohort: a folder, table, datalist or scan.
        out: the folder for the results.
        first: a case's id.
        second: another case's id.
        num_images: how many, both ends included.
        device: where to compute; the GPU if there is one when None.
        columns: what the cohort's table calls our words.
        overwrite: make it anew although it is there.
        overrides: values for keys of the bundle's config, such as ``{"inferer#num_steps": 50}``.

    Raises:
        ConfigError: no trained bundle, an argument out of range, or ``out`` holds another result.
        CohortError: no case of that id, or it cannot be read.

    Example:
        >>> interpolate("bundle", "cohort.csv", "out", first="a", second="b", num_images=1)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: num_images: 1 is below 2, the two ends
    """
    if num_images < 2:
        raise ConfigError(f"num_images: {num_images} is below 2, the two ends")
    if first == second:
        raise ConfigError(f"case: '{first}' is both the first and the second; name two")
    opened = open_cohort(bundle, cohort, device=device, columns=columns, overrides=overrides)
    cases = opened.choose([first, second])
    folder = Path(out)
    picture = folder / "interpolation.png"
    made_from = {**opened.made_from, "cases": checksum_of_cases(cases), "num_images": num_images}
    model_range = opened.trained.model_range

    def make() -> dict[str, Any]:
        coded = list(opened.coded(opened.read(cases, folder), "inverting 2 cases"))
        if len(coded) < 2:
            failure = next(failure for failure in opened.failures if failure.case_id in (first, second))
            raise CohortError(f"{failure.case_id}: {failure.reason}")
        a, b = coded
        weights = np.linspace(0, 1, num_images).tolist()
        images = opened.decode(lerp(a.z_sem, b.z_sem, weights), slerp(a.x_T, b.x_T, weights))
        digits = max(3, len(str(num_images)))  # so that no two names are alike
        affine = grid_affine(opened.trained.config)
        remove_images(folder / "images")
        for weight, image in zip(weights, images, strict=True):
            write_image(folder / "images" / f"{weight:.{digits}f}", image, model_range, a.case.file, affine)
        rows = {"both codes": images, "pixels": lerp(a.image, b.image, weights)}
        write_atomic(picture, lambda path: draw_mosaic(rows, path, model_range, [f"{w:.2g}" for w in weights]))
        log_to_open_run({}, [picture], "interpolation")
        return {"num_images": num_images}

    results = [picture, folder / "images"]
    _, skipped = run_once(folder / "interpolation.json", results, made_from, make, overwrite=overwrite)
    return InterpolateResult(folder, skipped)
