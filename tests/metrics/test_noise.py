import pytest
import torch

from monai_diffae.metrics import noise_statistics


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 1, 24, 24, 24)])
def test_noise_is_noise_and_smooth_noise_of_the_same_spread_is_not(shape):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = noise_statistics(noise)
    assert {name: tuple(values.shape) for name, values in found.items()} == {
        "mean": (2,), "std": (2,), "neighbor_correlation": (2,),
    }  # fmt: skip
    assert found["mean"].abs().max() < 0.05
    assert (found["std"] - 1).abs().max() < 0.05
    assert found["neighbor_correlation"].abs().max() < 0.05
    smooth = sum(noise.roll(1, axis) for axis in range(2, noise.ndim)) + noise
    smooth = smooth / smooth.std()
    assert (noise_statistics(smooth)["std"] - 1).abs().max() < 0.05
    assert noise_statistics(smooth)["neighbor_correlation"].min() > 0.2


def test_each_image_has_its_own_and_an_offset_is_no_correlation():
    noise = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    found = noise_statistics(torch.stack([noise[0], 2 * noise[1] + 5]))
    assert found["mean"].tolist() == pytest.approx([0, 5], abs=0.1)
    assert found["std"].tolist() == pytest.approx([1, 2], abs=0.1)
    assert found["neighbor_correlation"].abs().max() < 0.05


def test_what_a_single_voxel_or_a_constant_does_not_have_is_nan():
    one_voxel = noise_statistics(torch.zeros(2, 4, 1, 1))
    assert one_voxel["mean"].tolist() == [0, 0]
    assert one_voxel["neighbor_correlation"].isnan().all()
    assert noise_statistics(torch.ones(1, 1, 4, 4))["neighbor_correlation"].isnan().all()
