"""Colour pictures: refused, grey or in three channels; each kind of picture file has one behaviour."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_diffae.data.scan_checks import scan_of_array
from monai_diffae.data.scans import read_scan
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.transforms import ReadScand


@pytest.fixture
def colours() -> np.ndarray:
    """A picture [8, 10, 3] in which the channels differ."""
    return np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)


def saved(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


def test_colour_is_refused_with_the_two_choices(tmp_path, colours):
    path = saved(tmp_path / "a.png", Image.fromarray(colours))
    with pytest.raises(ScanError) as caught:
        read_scan(path, channels=1)
    assert str(caught.value) == (
        "a.png: it has 3 channels (colour), expected 1; train with colour grey or rgb, or convert it"
    )


def test_grey_is_the_luminance(tmp_path, colours):
    path = saved(tmp_path / "a.png", Image.fromarray(colours))
    grey = read_scan(path, channels=1, colour="grey").array
    assert grey.shape == (1, 8, 10)
    np.testing.assert_allclose(grey[0], np.asarray(Image.fromarray(colours).convert("L")), atol=1)


def test_rgb_keeps_colours_and_gives_grey_pictures_three_channels(tmp_path, colours):
    coloured = saved(tmp_path / "a.png", Image.fromarray(colours))
    plain = saved(tmp_path / "b.png", Image.fromarray(colours[..., 0]))
    read = ReadScand("image", 2, channels=3, colour="rgb")
    assert np.array_equal(read({"image": str(coloured)})["image"].numpy(), colours.transpose(2, 0, 1))
    assert np.array_equal(read({"image": str(plain)})["image"].numpy(), np.stack([colours[..., 0]] * 3))


@pytest.mark.parametrize("colour", ["refuse", "grey"])
def test_equal_channels_are_grey(colours, colour):
    grey = np.stack([colours[..., 0].astype(float)] * 3)
    grey[1] += 2
    assert np.array_equal(scan_of_array(grey, channels=1, colour=colour).array, grey[:1])


def test_colour_and_channels_must_fit():
    with pytest.raises(ConfigError, match="colour: rgb has 3 channels, but in_channels is 1; set in_channels to 3"):
        ReadScand("image", 2, channels=1, colour="rgb")
    with pytest.raises(ConfigError, match="colour: 'gray' is not one of refuse, grey, rgb"):
        ReadScand("image", 2, colour="gray")


def test_each_kind_of_picture_has_one_behaviour(tmp_path, colours):
    picture = Image.fromarray(colours)
    half = np.dstack([colours, np.full((8, 10), 128, np.uint8)])
    files = {
        "palette.png": picture.convert("P"),
        "opaque.png": picture.convert("RGBA"),
        "transparent.png": Image.fromarray(half),
        "16bit.png": Image.fromarray(colours[..., 0].astype(np.uint16) * 257),
        "cmyk.jpg": picture.convert("CMYK"),
        "colour.jpg": picture,
        "black_and_white.png": Image.fromarray(colours[..., 0]).convert("1"),
    }
    shapes = {}
    for name, image in files.items():
        try:
            shapes[name] = len(read_scan(saved(tmp_path / name, image)).array)
        except ScanError as error:
            shapes[name] = str(error)
    assert shapes == {
        "palette.png": 3,
        "opaque.png": 3,
        "transparent.png": "transparent.png: the picture is partly transparent; save it without an alpha channel",
        "16bit.png": 1,
        "cmyk.jpg": 3,
        "colour.jpg": 3,
        "black_and_white.png": 1,
    }
    assert read_scan(tmp_path / "16bit.png").array.max() > 255
