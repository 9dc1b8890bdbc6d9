"""Mosaics, thumbnails, captions and other pictures."""

import io

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffae.data.formats.axes import slice_volume
from monai_diffae.data.scans import Scan
from monai_diffae.errors import ConfigError
from monai_diffae.pictures import caption, check_captions, draw_anomalies, thumbnail
from monai_diffae.pictures.mosaic import draw_mosaic
from monai_diffae.pictures.pixels import in_colours, shown, side_by_side, three_planes


def mosaic(tmp_path, rows, **options):
    draw_mosaic(rows, tmp_path / "mosaic.png", **options)
    return np.asarray(Image.open(tmp_path / "mosaic.png").convert("RGB"))


def flat(*greys, size=8):
    return torch.tensor(greys)[:, None, None, None].expand(-1, 1, size, size)


def test_each_image_stands_in_its_row_and_place_and_range_is_black_to_white(tmp_path):
    rows = {"a": shown(flat(-1.0, 0.0)), "b": shown(flat(1.0, 3.0))}
    pixels = mosaic(tmp_path, rows)
    enlarged = 1000 // (2 * 10)
    left, cell = pixels.shape[1] - 2 * 10 * enlarged, 10 * enlarged
    centres = [[pixels[i * cell + cell // 2, left + j * cell + cell // 2].tolist() for j in (0, 1)] for i in (0, 1)]
    assert centres == [[[0, 0, 0], [128, 128, 128]], [[255, 255, 255], [255, 255, 255]]]
    assert pixels.shape[0] == 2 * cell


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


def test_differences_are_blue_white_and_red_in_the_mosaic(tmp_path):
    pixels = mosaic(tmp_path, {"a": in_colours(flat(-0.5, 0.0, 0.5), 0.5)})
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


@pytest.mark.parametrize("num_channels", [2, 3, 4])
def test_channels_that_are_no_colours_are_grey_and_side_by_side(tmp_path, num_channels):
    image = torch.linspace(-1, 1, num_channels)[None, :, None, None].expand(-1, -1, 10, 10)
    pixels = mosaic(tmp_path, {"a": shown(image)})
    places = [
        pixels.shape[1] - round((num_channels - i - 0.5) * pixels.shape[0] * 10 / 12) for i in range(num_channels)
    ]
    expected = np.linspace(0, 255, num_channels).round()
    np.testing.assert_array_equal(pixels[len(pixels) // 2, places], np.stack([expected] * 3, axis=1))
    assert side_by_side(shown(torch.zeros(1, num_channels, 4, 8))).shape == (1, 4 * num_channels, 8, 3)  # wide pictures
    differences = in_colours(image, 1.0)
    assert differences.shape == (1, 3 * num_channels, 10, 10)  # one colour per channel
    assert not torch.equal(differences[:, :3], differences[:, -3:])


def test_three_channels_are_colours_if_this_is_known(tmp_path):
    image = torch.tensor([-1.0, 1.0, -1.0])[None, :, None, None].expand(-1, -1, 10, 10)
    pixels = mosaic(tmp_path, {"a": shown(image, is_colour=True)})
    assert pixels[pixels.shape[0] // 2, -pixels.shape[0] // 2].tolist() == [0, 255, 0]
    assert in_colours(image, 1.0, is_colour=True).shape == (1, 3, 10, 10)


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 12, 14, 10), (4, 12, 14, 10)])
def test_the_outline_of_the_mask_is_drawn_where_the_map_is_high(tmp_path, shape):
    size = shape[1:]
    mask = torch.zeros(1, *size)
    mask[(slice(None), *(slice(2, 7) for _ in size))] = 1
    case = {"image": torch.zeros(shape), "reconstruction": torch.zeros(shape), "map": mask * 3, "mask": mask > 0}
    draw_anomalies([case, case], ["p 0.1", "p 0.2"], tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    is_red = (pixels[..., 0] > 200) & (pixels[..., 1] < 120) & (pixels[..., 2] < 60)
    assert is_red[3 * len(pixels) // 4 :].any()
    empty = {**case, "mask": torch.zeros_like(mask, dtype=torch.bool)}
    draw_anomalies([empty, empty], ["", ""], tmp_path / "b.png")
    pixels = np.asarray(Image.open(tmp_path / "b.png").convert("RGB")).astype(int)
    assert not ((pixels[..., 0] > 250) & (pixels[..., 1] < 100) & (pixels[..., 2] < 30))[3 * len(pixels) // 4 :].any()


def test_captions_have_one_line_each_in_the_order_of_the_names():
    values = {"id": "a b\nc", "age": 61.23456, "sex": "female", "left": True, "weight": np.float32("nan")}
    assert caption(values, ["sex", "id", "age", "left", "weight", "height"]).split("\n") == [
        "sex female", "a b c", "age 61.23", "left True", "weight -", "height -"
    ]  # fmt: skip
    (line,) = caption({"id": "x" * 100}, ["id"]).split("\n")
    assert (len(line), line[-1]) == (24, "…")
    check_captions(["id", "age"], ["age"])
    with pytest.raises(ConfigError, match="captions: there is no 'patient'; choose from: id, age"):
        check_captions(["id", "patient"], ["age"])


def test_a_thumbnail_is_small_and_spans_black_to_white_and_a_volume_shows_its_axial_middle_plane():
    def pixels(image):
        return np.asarray(Image.open(io.BytesIO(thumbnail(shown(image[None])))))[..., 0]

    ramp = pixels(torch.linspace(-1, 1, 16).reshape(1, 4, 4))
    assert (ramp.min(), ramp.max()) == (0, 255)
    assert pixels(torch.zeros(1, 100, 200)).shape == (32, 64)
    assert np.unique(pixels(torch.tensor([0.0, 1.0])[:, None, None].expand(2, 8, 8))).tolist() == [128]  # the first
    volume = torch.full((1, 6, 10, 20), -1.0)
    volume[0, 5, 9, 10] = 1  # right, anterior
    assert pixels(volume).shape == (10, 6)
    assert np.argwhere(pixels(volume) == 255).tolist() == [[0, 0]]  # as a radiologist sees it
