import pytest
import torch

from monai_diffae.errors import ConfigError
from monai_diffae.metrics.views import changed_views


@pytest.mark.parametrize(("shape", "number"), [((2, 1, 8, 6), 10), ((2, 2, 8, 6, 4), 13)])
def test_every_view_is_another_image_of_the_same_shape_and_range(shape, number):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    views = changed_views(images, noise)
    assert len(views) == number
    for name, view in views.items():
        assert view.shape == images.shape, name
        assert view.abs().max() <= 1, name
        assert not torch.equal(view, images), name


def test_what_each_does():
    images = torch.arange(12.0).reshape(1, 1, 3, 4)
    views = changed_views(images, torch.ones_like(images), (0.0, 20.0))
    assert views["flip up-down"][0, 0, 0].tolist() == [8, 9, 10, 11]
    assert views["flip left-right"][0, 0, 0].tolist() == [3, 2, 1, 0]
    assert views["noise 5 %"][0, 0, 0].tolist() == [1, 2, 3, 4]
    assert views["shift 2 left-right"][0, 0, 0].tolist() == [0, 0, 0, 1]
    assert views["shift 1 up-down"][0, 0, :, 0].tolist() == [0, 0, 4]
    torch.testing.assert_close(views["intensity x 0.9"], images * 0.9)


def test_other_shapes_are_refused():
    with pytest.raises(ConfigError, match="in 2D or 3D is needed"):
        changed_views(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
