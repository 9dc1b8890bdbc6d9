"""Small pictures of images, as PNG bytes."""

from __future__ import annotations

import io

from PIL import Image
from torch import Tensor

from monai_diffae.pictures.mosaic import three_planes

_THUMBNAIL_PX = 64


def thumbnail(image: Tensor, model_range: tuple[float, float]) -> bytes:
    """A small PNG of an image (C, *S); of a volume, its axial middle plane."""
    if image.ndim == 4:
        size = image.shape[2], image.shape[1]
        image = three_planes(image[None])[0][:, :, : size[1]]
        spare = image.shape[1] - size[0]
        image = image[:, spare // 2 : spare // 2 + size[0]]
    low, high = model_range
    grey = ((image if len(image) == 3 else image[:1]) - low) / (high - low)
    pixels = (grey.clamp(0, 1) * 255).round().byte().numpy().transpose(1, 2, 0)
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
