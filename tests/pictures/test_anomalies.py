from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffae.pictures import draw_anomalies


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 12, 12), (1, 12, 14, 10)])
def test_the_outline_of_the_mask_is_drawn_where_the_map_is_high(tmp_path, shape):
    size = shape[1:]
    mask = torch.zeros(1, *size)
    mask[(slice(None), *(slice(2, 7) for _ in size))] = 1
    case = {"image": torch.zeros(shape), "reconstruction": torch.zeros(shape), "map": mask * 3, "mask": mask > 0}
    draw_anomalies([case, case], ["p 0.1", "p 0.2"], tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    is_red = (pixels[..., 0] > 200) & (pixels[..., 1] < 120) & (pixels[..., 2] < 60)
    assert is_red[3 * len(pixels) // 4 :].any()
    empty = {**case, "mask": torch.zeros_like(mask, dtype=torch.bool)}
    draw_anomalies([empty, empty], ["", ""], tmp_path / "b.png")
    pixels = np.asarray(Image.open(tmp_path / "b.png").convert("RGB")).astype(int)
    assert not ((pixels[..., 0] > 250) & (pixels[..., 1] < 100) & (pixels[..., 2] < 30))[3 * len(pixels) // 4 :].any()
