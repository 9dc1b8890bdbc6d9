import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffae.data.scans import Scan, slice_volume
from monai_diffae.pictures.mosaic import draw_mosaic, in_colours, three_planes


def mosaic(tmp_path, rows, **options):
    draw_mosaic(rows, tmp_path / "mosaic.png", **options)
    return np.asarray(Image.open(tmp_path / "mosaic.png").convert("RGB"))


def flat(*greys, size=8):
    return torch.tensor(greys)[:, None, None, None].expand(-1, 1, size, size)


def test_each_image_stands_in_its_row_and_place_and_range_is_black_to_white(tmp_path):
    rows = {"a": flat(-1.0, 0.0), "b": flat(1.0, 3.0)}
    pixels = mosaic(tmp_path, rows)
    enlarged = 1000 // (2 * 10)
    left, cell = pixels.shape[1] - 2 * 10 * enlarged, 10 * enlarged
    centres = [[pixels[i * cell + cell // 2, left + j * cell + cell // 2].tolist() for j in (0, 1)] for i in (0, 1)]
    assert centres == [[[0, 0, 0], [128, 128, 128]], [[255, 255, 255], [255, 255, 255]]]
    assert pixels.shape[0] == 2 * cell


def test_columns_are_written_above_and_nothing_else_changes(tmp_path):
    rows = {"a": flat(-1.0, 0.0, 1.0)}
    plain, titled = mosaic(tmp_path, rows), mosaic(tmp_path, rows, columns=["-2", "+0", "+2"])
    heading = titled.shape[0] - plain.shape[0]
    assert heading > 0
    np.testing.assert_array_equal(titled[heading:], plain)
    # ink above each of the three, in its middle, and none between them
    ink = np.flatnonzero((titled[:heading] < 128).any(axis=(0, 2)))
    width = 3 * 10 * -(-1000 // 30)
    margin = plain.shape[1] - width
    places = (ink - margin) / (width / 3)
    assert set(np.floor(places)) == {0, 1, 2}
    assert (np.abs(places % 1 - 0.5) < 0.1).all()


def test_volumes_show_their_three_middle_planes_as_a_radiologist_sees_them():
    volume = np.random.default_rng(0).random((1, 6, 10, 8)).astype(np.float32)  # R, A, S
    shown = three_planes(torch.from_numpy(volume)[None])[0, 0].numpy()
    scan = Scan(volume, np.eye(4))
    left = 0
    for axis, middle in (("axial", 4), ("coronal", 5), ("sagittal", 3)):
        expected = slice_volume(scan, axis, middle).array[0]
        height, width = expected.shape
        top = (shown.shape[0] - height) // 2
        np.testing.assert_array_equal(shown[top : top + height, left : left + width], expected)
        assert np.isinf(shown[:top, left : left + width]).all()  # white
        left += width
    assert left == shown.shape[1]


def test_of_many_channels_the_first_is_shown(tmp_path):
    volume = torch.full((1, 2, 8, 8, 8), 1.0)
    volume[:, 0] = -1.0
    planes = torch.full((1, 1, 8, 24), -1.0)
    np.testing.assert_array_equal(mosaic(tmp_path, {"a": volume}), mosaic(tmp_path, {"a": planes}))


@pytest.mark.parametrize("model_range", [(-1.0, 1.0), (0.0, 2.0)])
def test_differences_are_blue_white_and_red_in_the_mosaic(tmp_path, model_range):
    colours = in_colours(flat(-0.5, 0.0, 0.5), 0.5, model_range=model_range)
    assert colours.shape == (3, 3, 8, 8)
    pixels = mosaic(tmp_path, {"a": colours}, model_range=model_range)
    enlarged = -(-1000 // 30)
    left = pixels.shape[1] - 30 * enlarged
    blue, white, red = (
        pixels[pixels.shape[0] // 2, left + int((i + 0.5) * 10 * enlarged)].astype(int) for i in range(3)
    )
    expected = matplotlib.colormaps["RdBu_r"]([0.0, 0.5, 1.0])[:, :3] * 255
    for found, wanted in zip((blue, white, red), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1.01)
    assert blue[2] > blue[0] + 50
    assert red[0] > red[2] + 50


def test_values_from_0_on_begin_with_a_palettes_first_colour_and_channels_are_averaged():
    values = torch.stack([torch.zeros(2, 4, 4), torch.full((2, 4, 4), 2.0)])
    values[1, 1] = 0.0  # a mean of 1
    colours = in_colours(values, 1.0, "magma")[:, :, 0, 0]
    expected = torch.tensor(matplotlib.colormaps["magma"]([0.0, 1.0])[:, :3] * 2 - 1, dtype=torch.float32)
    torch.testing.assert_close(colours, expected)
    # where nothing differs, all is white, and nothing is divided by 0
    assert in_colours(torch.zeros(1, 1, 4, 4), 0.0).isfinite().all()
