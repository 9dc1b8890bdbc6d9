"""Arrays for the browser."""

import json

import numpy as np
import torch

from monai_diffae.explorer.pixels import packed


def test_arrays_begin_at_multiples_of_four_bytes():
    arrays = {"a": torch.arange(3.0), "b": np.ones((2, 2))}
    for text in ("", "x", "xx", "xxx"):
        content = packed(arrays, text=text)
        length = int.from_bytes(content[:4], "little")
        assert length % 4 == 0
        header = json.loads(content[4 : 4 + length])
        assert header["text"] == text
        np.testing.assert_array_equal(
            np.frombuffer(content, "<f4", 3, 4 + length + header["arrays"]["a"]["offset"]), [0, 1, 2]
        )
        np.testing.assert_array_equal(
            np.frombuffer(content, "<f4", 4, 4 + length + header["arrays"]["b"]["offset"]), [1] * 4
        )
