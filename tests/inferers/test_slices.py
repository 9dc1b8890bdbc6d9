import torch

from monai_diffae.inferers.slices import from_slices, to_slices


def test_slices_are_those_along_the_last_axis_one_volume_after_the_other():
    volumes, codes = torch.randn(2, 1, 4, 5, 3), torch.randn(2, 3, 6)
    slices = to_slices(volumes)
    assert slices.shape == (6, 1, 4, 5)
    assert torch.equal(slices[4], volumes[1, ..., 1])
    assert torch.equal(to_slices(codes)[4], codes[1, 1])


def test_the_way_back_is_exact():
    for stack in (torch.randn(2, 1, 4, 5, 3), torch.randn(2, 3, 6)):
        assert torch.equal(from_slices(to_slices(stack), 3), stack)
