"""Variations of a case: what its z_sem leaves open."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_diffae.apps.results import log_to_open_run, remove_images, run_once
from monai_diffae.apps.session import checksum_of_cases, open_cohort
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.scans import write_scan
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import ConfigError
from monai_diffae.pictures.mosaic import draw_mosaic, in_colours
from monai_diffae.transforms.case_images import grid_affine, image_suffix, write_image

_SHOWN = 8


@dataclass(frozen=True)
class VaryResult:
    """What :func:`vary` made.

    Attributes:
        folder: with ``images/``, ``mean`` and ``std.nii.gz`` and ``variations.png``.
        mean_std: the standard deviation over the variations, averaged over the image, in the model's range.
        skipped: whether all was there already.
    """

    folder: Path
    mean_std: float
    skipped: bool = False


def vary(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    case: str,
    num_images: int = 16,
    seed: int = 0,
    device: str | None = None,
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> VaryResult:
    """Decode a case's z_sem with new x_T: the same meaning, other details (the paper's section 4.1).

    ``out/images/`` gets the variations in the model's grid, ``out/mean`` their mean and ``out/std.nii.gz`` their
    standard deviation in each voxel: where it is large, the image is stochastic to the model, not semantic.
    ``out/variations.png`` shows them.

    Args:
        bundle: a trained bundle's folder.
        cohort: a folder, table, datalist or scan.
        out: the folder for the results.
        case: the case's id.
        num_images: how many variations.
        seed: of the noise; the i-th variation is a function of (seed, i), to the bit.
        device: where to compute; the GPU if there is one when None.
        columns: what the cohort's table calls our words.
        overwrite: make it anew although it is there.
        overrides: values for keys of the bundle's config.

    Raises:
        ConfigError: no trained bundle, an argument out of range, or ``out`` holds another result.
        CohortError: no case of that id, or it cannot be read.

    Example:
        >>> vary("bundle", "cohort.csv", "out", case="a", num_images=1)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: num_images: 1 is below 2, without which nothing varies
    """
    if num_images < 2:
        raise ConfigError(f"num_images: {num_images} is below 2, without which nothing varies")
    opened = open_cohort(bundle, cohort, device=device, columns=columns, overrides=overrides)
    cases = opened.choose([case])
    folder = Path(out)
    picture, mean_file, std_file = folder / "variations.png", folder / "mean", folder / "std.nii.gz"
    made_from = {**opened.made_from, "cases": checksum_of_cases(cases), "num_images": num_images, "seed": seed}
    model_range = opened.trained.model_range

    def make() -> dict[str, Any]:
        coded = next(opened.coded(opened.read(cases, folder), "inverting the case"))
        noise = image_noise(opened.trained.x_T_shape, seed, list(range(num_images))).to(coded.image.device)
        # one by one: the last bits of a convolution depend on how many images it gets
        images = torch.cat([opened.decode(coded.z_sem, x_T[None]) for x_T in noise])
        affine = grid_affine(opened.trained.config)
        remove_images(folder / "images")
        for i, image in enumerate(images):
            write_image(folder / "images" / f"{i:03d}", image, model_range, coded.case.file, affine)
        mean, std = images.mean(dim=0, keepdim=True), images.std(dim=0, keepdim=True)
        for suffix in (".png", ".nii.gz"):  # an earlier case's may have the other
            (folder / f"mean{suffix}").unlink(missing_ok=True)
        write_image(mean_file, mean[0], model_range, coded.case.file, affine)
        write_scan(std_file, std[0].cpu().numpy(), affine)
        reconstruction = opened.decode(coded.z_sem, coded.x_T)
        limit = float(std.max())
        rows = {
            "input, own x_T": torch.cat([coded.image, reconstruction]),
            "new x_T": images[:_SHOWN],
            f"mean, std (to {limit:.2f})": torch.cat(
                [_in_three_channels(mean).cpu(), in_colours(std, limit, "magma", model_range)]
            ),
        }
        write_atomic(picture, lambda path: draw_mosaic(rows, path, model_range))
        numbers = {"mean_std": float(std.mean())}
        log_to_open_run(numbers, [picture], "variations")
        return numbers

    suffix = image_suffix(opened.trained.image_shape, cases[0].file)
    results = [picture, mean_file.with_suffix(suffix), std_file, folder / "images"]
    numbers, skipped = run_once(folder / "variations.json", results, made_from, make, overwrite=overwrite)
    return VaryResult(folder, numbers["mean_std"], skipped)


def _in_three_channels(images: Tensor) -> Tensor:
    """As the mosaic shows images (B, C, *S): in colour, or the first channel in grey."""
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, *images.shape[2:])
