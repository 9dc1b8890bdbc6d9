"""Arrays for the browser: a header in JSON, then float32."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from monai_diffae.pictures import three_planes

_THUMBNAIL_PX = 64


def packed(arrays: Mapping[str, Tensor | NDArray[Any]], **header: Any) -> bytes:
    """Arrays and other values as bytes: the header's length (uint32, little endian), the header, the arrays.

    Example:
        >>> content = packed({"image": np.zeros((1, 2), np.float32)}, steps=4)
        >>> length = int.from_bytes(content[:4], "little")
        >>> json.loads(content[4 : 4 + length])
        {'steps': 4, 'arrays': {'image': {'shape': [1, 2], 'offset': 0}}}
        >>> len(content) - 4 - length
        8
    """
    values = {name: _float32(array) for name, array in arrays.items()}
    places, offset = {}, 0
    for name, array in values.items():
        places[name] = {"shape": list(array.shape), "offset": offset}
        offset += array.nbytes
    text = json.dumps({**header, "arrays": places}, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)  # the browser needs arrays at multiples of 4
    return b"".join([struct.pack("<I", len(text)), text, *(array.tobytes() for array in values.values())])


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


def _float32(array: Tensor | NDArray[Any]) -> NDArray[np.float32]:
    values = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    return np.ascontiguousarray(values, "<f4")
