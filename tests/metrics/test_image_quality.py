import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from monai_diffae.metrics import ImageQuality, reconstruction_errors


@pytest.fixture
def large():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, 24, 24, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(192, 200), mode="bilinear")
    noisy = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    return images * 2 - 1, noisy * 2 - 1


def test_ms_ssim_is_that_of_torchmetrics(large):
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    values = ImageQuality((192, 200))(*large)["ms_ssim"]
    images, made = (stack + 1 for stack in large)
    expected = torch.stack([
        torchmetrics.multiscale_structural_similarity_index_measure(made[i : i + 1], images[i : i + 1], data_range=2.0)
        for i in range(2)
    ])  # fmt: skip
    torch.testing.assert_close(values, expected, atol=1e-4, rtol=0)
    assert (values < 0.99).all()


def test_ssim_of_volumes_has_a_window_in_3d():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 5, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(20, 22, 24), mode="trilinear") * 2 - 1
    made = images + 0.1 * torch.randn(images.shape, generator=generator)
    value = ImageQuality((20, 22, 24))(images, made)["ssim"]
    a, b = (stack[0, 0].double().numpy() + 1 for stack in (images, made))
    _, full = structural_similarity(
        a, b, data_range=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert float(value) == pytest.approx(full[5:-5, 5:-5, 5:-5].mean(), abs=1e-4)
    slices = torch.stack([reconstruction_errors(images[..., i], made[..., i])["ssim"] for i in range(24)])
    assert abs(float(slices.mean() - value)) > 0.01


def test_what_a_size_cannot_have_is_named():
    small = ImageQuality((176, 175))
    assert small.omitted() == {"ms_ssim": "images of 176 x 175 are too small; it needs 176 along each axis"}
    assert ImageQuality((176, 176)).omitted() == {}
    images = torch.zeros(1, 1, 176, 176)
    assert set(ImageQuality((176, 176))(images, images)) == {"mse", "psnr", "ssim", "ms_ssim"}


def test_diversity_is_the_standard_deviation_of_the_draws_for_any_number_of_them():
    generator = torch.Generator().manual_seed(0)
    for num in (2, 5):
        draws = 3 * torch.randn(4, num, 1, 64, 64, generator=generator)
        np.testing.assert_allclose(ImageQuality((64, 64)).diversity(draws)["diversity"], 3, rtol=0.05)
    same = torch.randn(2, 1, 1, 16, 16, generator=generator).expand(2, 4, 1, 16, 16)
    assert ImageQuality((16, 16)).diversity(same)["diversity"].abs().max() < 1e-6
