"""Goal R15: a file that asks for too much memory is refused, and the process stays small."""

import gzip
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scan_files import save_nifti, values

pytestmark = [pytest.mark.goal(id="R15"), pytest.mark.slow]

LARGEST_MB = 300
READ_ALL = """
import json, resource, sys
from monai.bundle import ConfigParser
from monai_diffae.data.scans import read_scan
from monai_diffae.errors import DiffAEError, find_diffae_error

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

config, good, *bombs = sys.argv[1:]
parser = ConfigParser()
parser.read_config(config)
parser.update({"dataset_dir": ".", "spacing_mm": [1.0, 1.0, 1.0], "image_size": [16, 16, 16]})
preprocessing = parser.get_parsed_content("preprocessing")
read_scan(good)
preprocessing({"image": good, "id": "good"})
before, lines = peak(), {}
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))  # whatever happens, this machine goes on
for bomb in bombs:
    try:
        preprocessing({"image": bomb, "id": "bomb"})
        lines[bomb] = None
    except Exception as error:
        known = find_diffae_error(error)
        lines[bomb] = repr(error) if known is None else str(known)
print(json.dumps([before, peak(), lines]))
"""


def _volume(path: Path, spacing: tuple[float, float, float], units: str = "mm"):
    image = nib.Nifti1Image(values(16, 16, 16), np.diag([*spacing, 1.0]))
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def _header_bomb(path: Path, size: tuple[int, int, int]):
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    data = bytearray(save_nifti(plain).read_bytes())
    data[40:56] = np.array([3, *size, 1, 1, 1, 1], np.int16).tobytes()
    path.write_bytes(gzip.compress(bytes(data)) if path.suffix == ".gz" else data)
    return path


def _png(path: Path, width: int, height: int):
    """A picture of zeros that declares its size; its pixels are packed a thousandfold."""

    def chunk(kind: bytes, content: bytes):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pack = zlib.compressobj()
    pixels = b"".join([*(pack.compress(bytes(1 << 20)) for _ in range(64)), pack.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


def _gzip_bomb(path: Path):
    """Behind the voxels 1 GB of zeros."""
    plain = save_nifti(path.with_suffix(""))
    path.write_bytes(gzip.compress(plain.read_bytes()) + 1000 * gzip.compress(bytes(1 << 20)))
    plain.unlink()
    return path


def _voxel_bomb(path: Path):
    """A header that tells the truth: 3 GB of zeros follow, packed into a few MB."""
    data = bytearray(save_nifti(path.with_suffix("")).read_bytes())
    data[40:56] = np.array([3, 1000, 1000, 800, 1, 1, 1, 1], np.int16).tobytes()
    path.write_bytes(gzip.compress(bytes(data[:352])) + 3052 * gzip.compress(bytes(1 << 20)))
    return path


def _packed_mha(path: Path):
    pack = zlib.compressobj()
    body = b"".join([*(pack.compress(bytes(1 << 20)) for _ in range(200)), pack.flush()])
    header = (
        "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
        f"CompressedData = True\nCompressedDataSize = {len(body)}\nElementDataFile = LOCAL\n"
    )
    path.write_bytes(header.encode() + body)
    return path


def test_bombs_are_refused_in_one_line_and_little_memory(tmp_path, record_property):
    good = _volume(tmp_path / "good.nii.gz", (1, 1, 1))
    bombs = [
        _header_bomb(tmp_path / "header.nii", (30000, 30000, 3000)),
        _header_bomb(tmp_path / "packed_header.nii.gz", (30000, 30000, 3000)),
        _header_bomb(tmp_path / "line.nii", (32767, 32767, 1)),
        _gzip_bomb(tmp_path / "behind.nii.gz"),
        _voxel_bomb(tmp_path / "voxels.nii.gz"),
        _packed_mha(tmp_path / "packed.mha"),
        _png(tmp_path / "wide.png", 100_000, 100_000),
        _png(tmp_path / "wider.png", 2**31 - 1, 2**31 - 1),
        _volume(tmp_path / "spacing.nii", (1e6, 1, 1)),
        _volume(tmp_path / "spacing5.nii", (1e5, 1e3, 1)),
        _volume(tmp_path / "metres.nii", (5, 5, 5), "meter"),
    ]
    config = Path(__file__).parents[2] / "bundles" / "diffae_3d" / "configs" / "train.json"
    command = [sys.executable, "-c", READ_ALL, config, good, *bombs]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    before, after, lines = json.loads(done.stdout.splitlines()[-1])
    assert len(lines) == len(bombs)
    for bomb, line in lines.items():
        assert line is not None, f"{bomb} was read"
        assert "; " in line, line
        assert len(line.splitlines()) == 1
        assert len(line) <= 200
    record_property("figure", f"{len(bombs)} bombs refused, {after - before:.0f} MB more than a good file")
    assert after - before < LARGEST_MB
