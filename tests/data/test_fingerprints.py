import numpy as np
import pytest
from scan_files import values

from monai_diffae.data.fingerprints import SIZE, aligned_correlation, details, fingerprint, scan_fingerprint
from monai_diffae.data.formats.scan import Scan


def test_the_same_voxels_have_the_same_digest_whatever_their_order_in_the_file():
    array = values(6, 7, 8)
    scan = Scan(array[None], np.eye(4))
    turned = Scan(array[None, ::-1].swapaxes(2, 3).copy(), np.diag([-1.0, 1, 1, 1])[:, [0, 2, 1, 3]])
    assert scan_fingerprint(scan).digest == scan_fingerprint(turned).digest
    assert scan_fingerprint(scan).thumbnail.shape == (3, SIZE, SIZE)


def test_another_size_or_another_voxel_is_another_digest():
    array = values(1, 6, 8)
    changed = array.copy()
    changed[0, 3, 3] += 1
    digests = {fingerprint(each).digest for each in (array, array.reshape(1, 8, 6), changed)}
    assert len(digests) == 3


@pytest.mark.parametrize("array", [np.zeros((1, 40, 40), np.float32), np.full((1, 9, 9, 9), 7, np.float32)])
def test_an_image_that_shows_nothing_has_no_thumbnail(array):
    assert fingerprint(array).thumbnail is None


def test_details_ignore_brightness_and_contrast():
    thumbnail = fingerprint(np.random.default_rng(0).random((1, 64, 64), np.float32)).thumbnail
    assert details(thumbnail) @ details(0.3 * thumbnail + 0.5) == pytest.approx(1, abs=1e-6)


def test_alignment_finds_a_crop_but_no_likeness_of_other_images():
    from scipy.ndimage import gaussian_filter, zoom

    rng = np.random.default_rng(0)
    image, other = (gaussian_filter(rng.random((200, 200)), 6).astype(np.float32) for _ in range(2))
    thumbnails = [fingerprint(each[None]).thumbnail for each in (image, zoom(image[4:-4, 4:-4], 1.1, order=1), other)]
    assert aligned_correlation(thumbnails[0], thumbnails[1]) > 0.96
    assert aligned_correlation(thumbnails[0], thumbnails[2]) < 0.6
