"""Read PNG, JPEG and BMP."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from monai_diffae.data.formats.scan import Header, Scan, check_budget, check_packed
from monai_diffae.errors import problem

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")

_PLAIN = {"1": "L", "P": "RGBA", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "La": "LA"}


def read(path: Path) -> Scan:
    """Read a picture ``[C, H, W]`` in the file's own values, rotated upright, without an opaque alpha channel."""
    values = to_array(path, image := _open(path))
    array = np.moveaxis(values, -1, 0).astype(np.float32, order="C")
    return Scan(array, np.eye(4), has_8_bits=not image.mode.startswith("I"))


def to_array(path: Path, image: Image.Image) -> NDArray[Any]:
    """The values ``[H, W, C]`` of a picture, rotated upright, without an opaque alpha channel."""
    try:
        if image.format == "PNG":  # load() does not compare the checksum of the last rows
            _open(path).verify()
        image.load()
        image = ImageOps.exif_transpose(image)
        image = image.convert(_PLAIN[image.mode]) if image.mode in _PLAIN else image
    except Exception as error:  # for damaged files PIL raises OSError, SyntaxError, ValueError, struct.error, ...
        raise problem(path, f"the picture is damaged ({error})", "copy it again") from error
    array = np.atleast_3d(np.asarray(image))
    if image.mode in ("LA", "RGBA"):
        if array[..., -1].min() < 255:
            raise problem(path, "the picture is partly transparent", "save it without an alpha channel")
        array = array[..., :-1]
    return array


def read_header(path: Path) -> Header:
    """Read the size ``(H, W)`` as displayed, and the channels unless a palette or transparency may change them."""
    image = _open(path)
    width, height = image.size
    is_rotated = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # these EXIF orientations exchange rows and columns
    plain = _PLAIN.get(image.mode, image.mode)
    bands = None if plain in ("LA", "RGBA") else len(Image.new(plain, (1, 1)).getbands())
    shape = (width, height) if is_rotated else (height, width)
    return Header(shape, np.eye(4), channels=bands)


def open_image(path: Path, *formats: str) -> Image.Image:
    """Open a file that has one of these formats."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images and damaged tags; check_budget has its own limit
            return Image.open(path, formats=formats)
    except UnidentifiedImageError as error:  # its text has the folder
        wrong, todo = f"this is not a readable {'/'.join(formats)}", "export it again, with 8 or 16 bits per value"
        raise problem(path, wrong, todo) from error


def _open(path: Path) -> Image.Image:
    image = open_image(path, "PNG", "JPEG", "BMP")
    _check_depth(path, image)
    check_budget(path, image.size, len(image.getbands()))
    num_values = math.prod(image.size) * len(image.getbands())
    has_bits = image.format != "JPEG" and image.mode in ("1", "L", "P")  # a byte may hold eight pixels of one bit
    check_packed(path, num_values // 8 if has_bits else num_values, path.stat().st_size)
    if getattr(image, "n_frames", 1) > 1:
        raise problem(path, f"it contains {image.n_frames} pictures", "save each as a file of its own")  # type: ignore[attr-defined]
    return image


def _check_depth(path: Path, image: Image.Image) -> None:
    """Raise an error for 16-bit PNG with several channels: PIL drops the lower 8 bits, often all that a scan uses."""
    if image.format != "PNG":
        return
    with open(path, "rb") as stream:
        depth, colour_type = stream.read(26)[24:]  # of the header chunk, which is the first one
    if depth == 16 and colour_type != 0:
        advice = "save it as a grey picture of 16 bits, or with 8 bits per channel"
        raise problem(path, "a picture with colours or an alpha channel has 16 bits", advice)
