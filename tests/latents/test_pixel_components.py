import numpy as np
import pytest

from monai_diffae.latents.pixel_components import PixelComponents


@pytest.fixture
def images():
    """300 images of three components with noise, in 6 batches."""
    rng = np.random.default_rng(0)
    codes, axes = rng.normal(size=(300, 3)) * [30, 10, 3], np.linalg.qr(rng.normal(size=(40, 3)))[0].T
    return (codes @ axes + 100 + rng.normal(0, 0.1, (300, 40))).reshape(300, 1, 5, 8)


def test_features_do_not_depend_on_the_batches(images):
    whole = PixelComponents.fit([images], 3).features(images)
    batches = PixelComponents.fit(np.split(images, 6), 3).features(images)
    for i in range(3):
        assert abs(np.corrcoef(whole[:, i], batches[:, i])[0, 1]) > 0.999
    assert np.sqrt((whole**2).mean()) == pytest.approx(1, rel=0.01)


def test_the_same_images_give_the_same_to_the_bit_and_few_images_fewer_components(images):
    one, other = (PixelComponents.fit(iter([images]), 40) for _ in range(2))
    assert (one.axes == other.axes).all()
    assert one.axes.shape == (40, 40)
    assert PixelComponents.fit([images[:5]], 40).features(images).shape == (300, 4)
    assert np.isfinite(PixelComponents.fit([np.ones((3, 2))], 2).features(np.ones((1, 2)))).all()
