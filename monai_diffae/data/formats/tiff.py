"""Read TIFF: one page is a picture; several pages are a volume, whose third axis they are.

Pillow decodes most files, and SimpleITK those of which Pillow would drop bits or signs.
"""

import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from PIL import ImageSequence
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from monai_diffae.data.formats import itk, pictures
from monai_diffae.data.formats.scan import Doubt, Header, Scan, Voxels, as_float32, check_budget, check_packed
from monai_diffae.errors import counted, problem

SUFFIXES = (".tif", ".tiff")

_KINDS = {1: "unsigned integer", 2: "signed integer", 3: "float"}  # the tag SampleFormat, in ITK's words


class _Page(NamedTuple):
    """Tags that all pages of a file share; of a tag with several values, the lowest."""

    width: int = 0
    height: int = 0
    photometric: int = 1  # 0: the lowest value is white; 1: black; 3: a palette
    samples: int = 1
    bits: int = 1
    kind: int = 1
    extra: int = 1  # what samples beyond colours are: 0 is not known, others are alpha
    orientation: int = 1


_TAGS = dict(zip(_Page._fields, (256, 257, 262, 277, 258, 339, 338, 274), strict=True))


def read(path: Path) -> Scan:
    """Read a page ``[C, H, W]`` as displayed, or pages ``[C, X, Y, Z]``."""
    page, count = _read_page(path)
    header = _to_header(page, count)
    with itk.one_line_errors(path):  # also of libtiff in Pillow
        if (page.samples > 1 and page.bits > 8) or (page.bits, page.kind) in ((8, 2), (32, 1)):
            array = _read_with_itk(path, page)
        else:
            with pictures.open_image(path, "TIFF") as image:
                pages = np.stack([pictures.to_array(path, frame) for frame in ImageSequence.Iterator(image)])
            pages = pages.transpose(3, 1, 2, 0)[..., 0] if count == 1 else pages.transpose(3, 2, 1, 0)
            array = as_float32(path, pages)
    if page.photometric == 0 and page.bits == 16:  # Pillow inverts smaller values only
        array = 65535 - array
    has_8_bits = count == 1 and page.bits <= 8 and page.kind == 1
    return Scan(array, header.affine, doubts=header.doubts, has_8_bits=has_8_bits)


def read_header(path: Path) -> Header:
    """Read the size ``(H, W)`` as displayed, or ``(X, Y, Z)`` of several pages."""
    return _to_header(*_read_page(path))


def _to_header(page: _Page, count: int) -> Header:
    channels = page.samples if page.samples in (1, 3) and page.photometric != 3 else None
    if count == 1:
        return Header((page.height, page.width), np.eye(4), channels=channels)
    wrong, read_as = "it has no voxel spacing or orientation", f"its {count} pages are read as axial slices, 1 mm apart"
    doubt = Doubt("spacing", wrong, read_as, "convert it to .nii.gz with its spacing")
    return Header((page.width, page.height, count), itk.LPS_TO_RAS, (doubt,), channels)


def _read_page(path: Path) -> tuple[_Page, int]:
    """Read what all pages share, and their number, with the checks that come before the values."""
    pages, starts, descriptions = set(), set(), []
    with open(path, "rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other tags that are damaged
        start = stream.read(16)
        try:
            tags = ImageFileDirectory_v2(start if start[2:3] == b"+" else start[:8])
        except SyntaxError as error:
            raise problem(path, "this is not a TIFF file", "download or export it again") from error
        while tags.next and tags.next not in starts:
            starts.add(tags.next)
            stream.seek(tags.next)
            tags.load(stream)
            pages.add(_Page(**{name: int(np.min(tags[tag])) for name, tag in _TAGS.items() if tag in tags}))
            descriptions.append(str(tags.get(270)))
    if tags.next != 0:
        raise problem(path, "the list of its pages is damaged or ends early", "copy or export it again")
    if len(pages) > 1:
        raise problem(path, "its pages differ in size or type", "save those of one kind as a file of their own")
    page, count = pages.pop(), len(starts)
    _check_kind(path, page, descriptions[0])
    sizes = (page.width, page.height, count)
    check_budget(path, sizes, page.samples)
    check_packed(path, int(np.prod(sizes)) * page.samples * page.bits // 8, path.stat().st_size)
    return page, count


def _check_kind(path: Path, page: _Page, description: str) -> None:
    """Raise an error for pages that are not slices, and for values that would not be read as they are shown."""
    counts = re.findall(r'(?:channels|frames|SizeC|SizeT)="?(\d+)', description)  # by ImageJ and OME
    if any(int(count) not in (1, page.samples) for count in counts):
        raise problem(path, "its pages are not only slices, but also channels or times", "save each volume by itself")
    if page.orientation > 4:  # Pillow (13) mixes up rows and columns of those without compression
        raise problem(path, "its rows are shown as columns (Orientation)", "save it upright")
    if page.extra == 0 or (page.samples > 3 and page.bits > 8):
        wrong = f"it has {counted(page.samples, 'channel')} of {page.bits} bits, not all of them colours"
        raise problem(path, wrong, "save each channel as a file of its own")
    if page.photometric == 0 and not (page.samples == page.kind == 1 and page.bits <= 16):
        raise problem(path, "its lowest value is white (MinIsWhite)", "save it with black as the lowest value")


def _read_with_itk(path: Path, page: _Page) -> Voxels:
    image = sitk.ReadImage(str(path), imageIO="TIFFImageIO")
    kind = f"{'vector of ' if page.samples > 1 else ''}{page.bits}-bit {_KINDS[page.kind]}"
    if image.GetPixelIDTypeAsString() != kind:  # ITK converts tiles, planes and others to 8 bits
        raise problem(path, "its values are stored in a way that is not supported", "save it without tiles and planes")
    return itk.to_array(path, image)
