"""Images as pixels: from black to white or in colours, volumes in three planes, thumbnails.

:func:`shown` and :func:`in_colours` make pictures of images: uint8 (B, 3 P, *S), with P colours for each voxel.
An image whose channels are not colours has one grey picture per channel; they are drawn side by side, or below each
other if they are wide.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from monai_diffae.data.formats.axes import to_ras
from monai_diffae.data.formats.scan import Floats
from monai_diffae.data.scans import Scan
from monai_diffae.policies import Range

PLANES = "Planes: axial, coronal, sagittal; the patient's right is on the left."


def shown(images: Tensor, model_range: Range = (-1.0, 1.0), is_colour: bool = False) -> Tensor:
    """Pictures of images (B, C, *S) from black to white: uint8 (B, 3 C, *S), or (B, 3, *S) if channels are colours.

    Example:
        >>> shown(torch.zeros(1, 2, 4, 4)).shape
        torch.Size([1, 6, 4, 4])
    """
    low, high = model_range
    scaled = (images.detach().as_subclass(Tensor).float().cpu() - low) / (high - low)
    levels = (scaled.clamp(0, 1) * 255).round().byte()
    return levels if is_colour else levels.repeat_interleave(3, dim=1)


def in_colours(values: Tensor, limit: float, palette: str = "RdBu_r", is_colour: bool = False) -> Tensor:
    """Pictures of maps (B, C, *S) in colours, by default blue below 0 and red above.

    Args:
        values: differences, or values from 0 on for another palette.
        limit: the value of the last colour.
        palette: a colour map of matplotlib. If its name ends in ``_r``, it starts at ``-limit``, else at 0.
        is_colour: show the mean over the channels, which are colours.

    Returns:
        uint8 (B, 3 C, *S), or (B, 3, *S) if channels are colours.
    """
    import matplotlib

    position = values.detach().as_subclass(Tensor).float().cpu() / max(limit, 1e-12)
    position = position.mean(dim=1, keepdim=True) if is_colour else position
    position = (position + 1) / 2 if palette.endswith("_r") else position
    colours = matplotlib.colormaps[palette](position.clamp(0, 1).numpy(), bytes=True)[..., :3]
    return torch.from_numpy(colours).movedim(-1, 2).flatten(1, 2)


def three_planes(volumes: Tensor, voxel: Sequence[int] | None = None) -> Tensor:
    """The axial, coronal and sagittal planes of volumes in RAS order, side by side as a radiologist sees them.

    The orientation is that of :func:`~monai_diffae.data.formats.axes.slice_volume`: superior or anterior above, the
    patient's right on the left.

    Args:
        volumes: (B, C, R, A, S).
        voxel: the voxel through which the planes pass; None: the middle.

    Returns:
        (B, C, H, W); smaller planes are padded with white.

    Example:
        >>> three_planes(torch.zeros(2, 1, 8, 10, 6)).shape
        torch.Size([2, 1, 10, 26])
    """
    right, anterior, superior = [size // 2 for size in volumes.shape[2:]] if voxel is None else voxel
    cuts = (volumes[..., superior], volumes[..., anterior, :], volumes[:, :, right])
    planes = [plane.flip(2, 3).transpose(2, 3) for plane in cuts]
    white = 255 if volumes.dtype == torch.uint8 else math.inf
    height = max(plane.shape[2] for plane in planes)
    spare = [height - plane.shape[2] for plane in planes]
    return torch.cat(
        [
            nn.functional.pad(plane, (0, 0, n // 2, n - n // 2), value=white)
            for plane, n in zip(planes, spare, strict=True)
        ],
        dim=3,
    )


def fitted(
    image: NDArray[np.float32],
    affine: Floats,
    sides: tuple[int, int],
    *,
    is_smooth: bool = False,
    background: float | None = None,
) -> Tensor:
    """A square picture (C, P, P) of an image (C, H, W), or (C, P, 3 P) of a volume (C, *S) in three planes.

    Args:
        image: the image, whose axes ``affine`` describes.
        affine: from voxels to RAS mm; only used for volumes.
        sides: pixels along each side of an image, and of a plane of a volume.
        is_smooth: enlarge by interpolation, instead of showing the image's own pixels.
        background: the value around the image; None: 0 if the picture has values on both sides of it, else the lowest.
    """
    side, lengths = sides[0], [float(length) for length in image.shape[1:]]
    if is_volume := image.ndim == 4:
        volume = to_ras(Scan(image, affine))
        image, side = np.ascontiguousarray(volume.array, np.float32), sides[1]
        lengths = (np.array(image.shape[1:]) * np.linalg.norm(volume.affine[:3, :3], axis=0)).tolist()
    sizes = [max(1, round(length * side / max(lengths))) for length in lengths]
    smaller = [min(size, own) for size, own in zip(sizes, image.shape[1:], strict=True)]
    shown = nn.functional.interpolate(torch.from_numpy(image)[None].float(), smaller, mode="area")
    smooth = "trilinear" if is_volume else "bilinear"
    shown = nn.functional.interpolate(shown, sizes, mode=smooth if is_smooth else "nearest-exact")
    if background is None:
        background = 0.0 if float(shown.min()) < 0 < float(shown.max()) else float(shown.min())
    spare = [side - size for size in reversed(sizes)]  # of the last axis first
    shown = nn.functional.pad(shown, [n for each in spare for n in (each // 2, each - each // 2)], value=background)
    return three_planes(shown)[0] if is_volume else shown[0]


def side_by_side(images: Tensor, *, below: bool = False) -> NDArray[np.uint8]:
    """The pixels ``[B, H, P W, 3]`` of pictures (B, 3 P, H, W), or of three planes of volumes (B, 3 P, *S).

    With ``below`` and for wide pictures, such as three planes, channels are below each other: ``[B, P H, W, 3]``.
    """
    images = three_planes(images) if images.ndim == 5 else images
    channels = images.unflatten(1, (-1, 3)).movedim(2, -1).unbind(1)
    pixels: NDArray[np.uint8] = torch.cat(channels, dim=1 if below or images.shape[3] > images.shape[2] else 2).numpy()
    return pixels


def plane_slices(volume: Tensor, plane: str) -> Tensor:
    """All slices of a volume in one plane, as a radiologist sees them; see :func:`three_planes`.

    Args:
        volume: (C, R, A, S).
        plane: ``axial``, ``coronal`` or ``sagittal``.

    Returns:
        (C, N, H, W), from inferior, posterior or left.

    Example:
        >>> plane_slices(torch.zeros(1, 8, 10, 6), "axial").shape
        torch.Size([1, 6, 10, 8])
    """
    axis = {"sagittal": 1, "coronal": 2, "axial": 3}[plane]
    return volume.movedim(axis, 1).flip(2, 3).transpose(2, 3)


def thumbnail(image: Tensor, side_px: int = 64, kind: str = "png") -> bytes:
    """A small file of a picture (1, 3 P, *S), the first if P > 1; of a volume, it shows the axial middle plane."""
    (image,) = image[:, :3]
    if image.ndim == 4:
        image = plane_slices(image, "axial")[:, image.shape[3] // 2]
    picture = Image.fromarray(side_by_side(image[None])[0])
    picture.thumbnail((side_px, side_px))
    file = io.BytesIO()
    picture.save(file, kind, quality=88)
    return file.getvalue()
