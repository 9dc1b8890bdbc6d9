import numpy as np
import pytest
import torch

from monai_diffae.transforms.case_images import read_image, write_image


@pytest.mark.parametrize("source", ["a.png", "a.nii"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_was_written_is_read_even_if_it_is_constant_or_grey(tmp_path, source, channels):
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 5, 7, generator=rng).expand(channels, -1, -1) * 4 - 2
    for image in (noise, torch.full((channels, 5, 7), -2.0)):
        file = write_image(tmp_path / "a", image, (-2.0, 2.0), source)
        made = read_image(file, (-2.0, 2.0))
        np.testing.assert_allclose(made.reshape(channels, 5, 7), image, atol=4 / 255 if source == "a.png" else 0)
