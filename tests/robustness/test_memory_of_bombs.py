"""Goal R15: a file that asks for too much memory is refused, and the process stays small."""

import gzip
import resource
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from scan_files import save_nifti, values

from monai_diffae.errors import find_diffae_error

CONFIG = Path(__file__).parents[2] / "bundles" / "diffae_3d" / "configs" / "train.json"
LARGEST_MB = 300
MB_OF_ZEROS = bytes(1 << 20)


def _volume(path, spacing, units="mm"):
    image = nib.Nifti1Image(values(16, 16, 16), np.diag([*spacing, 1.0]))
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def _header(path, *size):
    data = bytearray(save_nifti(path.with_name("plain.nii")).read_bytes())
    data[40:56] = np.array([3, *size, 1, 1, 1, 1], np.int16).tobytes()
    return bytes(data)


def _packed(path, data, megabytes):
    """What is packed has many zeros behind it."""
    path.write_bytes(gzip.compress(data) + megabytes * gzip.compress(MB_OF_ZEROS))
    return path


def _png(path, width, height):
    """A picture of zeros that declares its size; its pixels are packed a thousandfold."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(64 * MB_OF_ZEROS)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


def _mha(path):
    body = zlib.compress(200 * MB_OF_ZEROS)
    header = (
        "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
        f"CompressedData = True\nCompressedDataSize = {len(body)}\nElementDataFile = LOCAL\n"
    )
    path.write_bytes(header.encode() + body)
    return path


def read_all(good, bombs):
    """MB by which the process grows, and the error of each bomb."""

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser.update({"dataset_dir": ".", "spacing_mm": [1.0, 1.0, 1.0], "image_size": [16, 16, 16]})
    preprocessing = parser.get_parsed_content("preprocessing")
    preprocessing({"image": str(good), "id": "good"})
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))  # whatever happens, this machine goes on
    before, lines = peak(), []
    for bomb in bombs:
        try:
            preprocessing({"image": str(bomb), "id": "bomb"})
            lines.append(None)
        except Exception as error:
            lines.append(str(find_diffae_error(error) or repr(error)))
    return peak() - before, lines


@pytest.mark.slow
@pytest.mark.goal(id="R15")
def test_bombs_are_refused_in_one_line_and_little_memory(tmp_path, in_a_fork, record_property):
    (tmp_path / "header.nii").write_bytes(_header(tmp_path / "header.nii", 30000, 30000, 3000))
    (tmp_path / "line.nii").write_bytes(_header(tmp_path / "line.nii", 32767, 32767, 1))
    truth = _header(tmp_path / "truth", 1000, 1000, 800)[:352]  # 3 GB of zeros follow
    bombs = [
        tmp_path / "header.nii",
        tmp_path / "line.nii",
        _packed(tmp_path / "packed_header.nii.gz", _header(tmp_path / "packed", 30000, 30000, 3000), 0),
        _packed(tmp_path / "behind.nii.gz", save_nifti(tmp_path / "b.nii").read_bytes(), 1000),
        _packed(tmp_path / "voxels.nii.gz", truth, 3052),
        _mha(tmp_path / "packed.mha"),
        _png(tmp_path / "wide.png", 100_000, 100_000),
        _png(tmp_path / "wider.png", 2**31 - 1, 2**31 - 1),
        _volume(tmp_path / "spacing.nii", (1e6, 1, 1)),
        _volume(tmp_path / "spacing5.nii", (1e5, 1e3, 1)),
        _volume(tmp_path / "metres.nii", (5, 5, 5), "meter"),
    ]
    grown, lines = in_a_fork(read_all, _volume(tmp_path / "good.nii.gz", (1, 1, 1)), bombs)
    for bomb, line in zip(bombs, lines, strict=True):
        assert line is not None, f"{bomb} was read"
        assert "; " in line, line
        assert len(line.splitlines()) == 1
        assert len(line) <= 200
    record_property("figure", f"{len(bombs)} bombs refused, {grown:.0f} MB more than a good file")
    assert grown < LARGEST_MB
