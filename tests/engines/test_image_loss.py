"""The loss of decoded images beside their squared error."""

import pytest
import torch

from monai_diffae.engines import ImageLoss, gradient_difference
from monai_diffae.metrics import PerceptualDistance


def test_gradients_at_each_scale():
    """A checkerboard has gradients at full size only, a step at all of them, an offset none."""
    rows = torch.arange(16) % 2
    board = (rows[:, None] == rows).float()[None, None]
    zeros = torch.zeros_like(board)
    assert gradient_difference(board, zeros) == pytest.approx(1 / 3)  # 1 along both axes at one of three scales
    step = zeros.clone()
    step[..., 8:] = 1
    # along one of two axes: one of 15, 7 and 3 differences is 1
    assert gradient_difference(step, zeros) == pytest.approx((1 / 15 + 1 / 7 + 1 / 3) / 6)
    assert gradient_difference(board + 0.5, board) == 0


@pytest.mark.parametrize("size", [(16, 12), (8, 8, 8), (16, 16, 2), (2, 2)])
def test_one_value_per_image_that_a_blurred_image_lowers(size):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 1, *size, generator=generator)
    images = torch.stack([target[0], target[1].mean().expand(1, *size)]).requires_grad_()
    loss = ImageLoss(gradient_weight=2.0)(images, target)
    assert loss[0] == 0 < loss[1]
    loss.sum().backward()
    assert images.grad is not None
    assert images.grad[1].any()


def test_no_weights_no_loss():
    assert ImageLoss()(torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)).tolist() == [0, 0, 0]


def test_lpips_is_added(tmp_path):
    pytest.importorskip("lpips")
    models = pytest.importorskip("torchvision.models")
    torch.save(models.alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    lpips = PerceptualDistance(tmp_path / "alexnet.pth")
    images, target = torch.rand(2, 2, 1, 32, 32).requires_grad_().unbind(0)
    loss = ImageLoss(0.1, 0.5, lpips, (0.0, 1.0))(images, target)
    expected = 0.1 * gradient_difference(images, target) + 0.5 * lpips(images, target, (0.0, 1.0))
    torch.testing.assert_close(loss, expected)
    assert not any(p.requires_grad for p in lpips.parameters())
