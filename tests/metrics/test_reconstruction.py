import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from monai_diffae.metrics import reconstruction_errors


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(
        torch.rand(2, 1, 8, 8, generator=generator), scale_factor=5, mode="bilinear"
    )
    noisy = (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    return images * 2 - 1, noisy * 2 - 1


def test_the_numbers_are_those_of_scikit_image(pair):
    errors = reconstruction_errors(*pair)
    for i, (a, b) in enumerate(zip(*(x[:, 0].double().numpy() for x in pair), strict=True)):
        assert errors["mse"][i] == pytest.approx(np.mean((a - b) ** 2), rel=1e-5)
        assert errors["psnr"][i] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=2), rel=1e-5)
        _, full = structural_similarity(
            a + 1, b + 1, data_range=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        # MONAI's averages where the whole window of 11 lies inside the image
        assert errors["ssim"][i] == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)


def test_a_models_range_changes_mse_alone(pair):
    images, made = pair
    narrow = reconstruction_errors((images + 1) / 2, (made + 1) / 2, (0.0, 1.0))
    wide = reconstruction_errors(images, made)
    torch.testing.assert_close(wide["mse"], 4 * narrow["mse"])
    torch.testing.assert_close(wide["psnr"], narrow["psnr"])
    torch.testing.assert_close(wide["ssim"], narrow["ssim"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 16, 16), (1, 1, 8, 8, 8)])
def test_small_images_colour_and_volumes(shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same, other = reconstruction_errors(images, images), reconstruction_errors(images, images.flip(-1))
    torch.testing.assert_close(same["ssim"], torch.ones(len(images)), atol=1e-5, rtol=0)
    assert torch.isinf(same["psnr"]).all()
    assert (other["ssim"] < 0.9).all()
    assert all(values.shape == (len(images),) for values in other.values())


@pytest.mark.parametrize("shape", [(8, 1, 8, 8), (8, 1, 32, 32), (8, 1, 16, 16, 16)])
@pytest.mark.parametrize("contrast", [2, 1e-2, 1e-4])
def test_an_ssim_is_never_above_1(shape, contrast):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * contrast - 1
    for made in (images, images + 1e-7):
        assert (reconstruction_errors(images, made)["ssim"] <= 1).all()
