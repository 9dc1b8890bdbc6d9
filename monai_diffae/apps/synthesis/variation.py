"""The work of ``vary``: one z_sem decoded with many x_T, their mean and their standard deviation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from monai_diffae.apps.results import remove_images
from monai_diffae.apps.session import CodedCase, Session
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.scans import write_scan
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.pictures import draw_mosaic, in_colours
from monai_diffae.transforms.case_images import write_image

_IN_PICTURE = 8


def write_variations(session: Session, coded: CodedCase, num_images: int, seed: int, out: Path) -> float:
    """Decode and write the variations of a case, their mean, their standard deviation and the picture.

    Args:
        session: the bundle; its batch size should be 1, because convolutions over batches of different sizes differ in
            their last bits.
        coded: the case with its codes.
        num_images: number of variations.
        seed: random seed of their noise.
        out: the folder for the results.

    Returns:
        The standard deviation, averaged over the image.
    """
    trained = session.trained
    x_T = image_noise(trained.x_T_shape, seed, list(range(num_images))).to(trained.device)
    images = session.decode(coded.z_sem, x_T)
    mean, std = images.mean(dim=0, keepdim=True), images.std(dim=0, keepdim=True)
    remove_images(out / "images")
    for suffix in (".png", ".nii.gz"):  # the mean of an earlier case may have the other suffix
        (out / f"mean{suffix}").unlink(missing_ok=True)
    files = {f"images/{i:03d}": image for i, image in enumerate(images)} | {"mean": mean[0]}
    for name, image in files.items():
        write_image(out / name, image, trained.model_range, coded.case.file, trained.grid_affine)
    write_scan(out / "std.nii.gz", std[0].cpu().numpy(), trained.grid_affine)
    reconstruction = session.decode(coded.z_sem, coded.x_T)
    largest = float(std.max())
    std_in_colours = in_colours(std, largest, "magma", trained.model_range)
    rows = {
        "input, own x_T": torch.cat([coded.image, reconstruction]),
        "new x_T": images[:_IN_PICTURE],
        f"mean, std (to {largest:.2f})": torch.cat([_in_three_channels(mean).cpu(), std_in_colours]),
    }
    write_atomic(out / "variations.png", lambda path: draw_mosaic(rows, path, trained.model_range))
    return float(std.mean())


def _in_three_channels(images: Tensor) -> Tensor:
    """Return images (B, C, *S) as the mosaic shows them: in colour, or the first channel in grey."""
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, *images.shape[2:])
