"""Arrays for the browser: a header in JSON, then float32."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


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


def _float32(array: Tensor | NDArray[Any]) -> NDArray[np.float32]:
    values = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    return np.ascontiguousarray(values, "<f4")
