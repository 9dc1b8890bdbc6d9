"""The 24 defects of goal R6: what is wrong with a scan of a cohort whose other scans are good."""

import gzip

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from dicom_files import make_plane, positions, save_planes
from PIL import Image
from pydicom.encaps import encapsulate

SIZE = 16
MM = SPACING_MM = 14.0
"""As in the tiny bundles of conftest.py."""


def noise(dims, seed=0):
    return np.random.default_rng(seed).normal(100, 20, (SIZE,) * dims).astype(np.float32)


def save(path, array: np.ndarray, affine=None):
    nib.save(nib.Nifti1Image(array, np.diag([SPACING_MM] * 3 + [1.0]) if affine is None else affine), path)
    return path


def _content(name, change):
    """A good NIfTI file whose bytes are changed."""

    def make(folder, dims):
        path = save(folder / name, noise(dims))
        path.write_bytes(change(bytearray(path.read_bytes())))
        return name

    return make


def _at(place, content):
    """Other bytes from a place on."""

    def change(data):
        data[place : place + len(content)] = content
        return data

    return change


def bit_flip(data):
    data[len(data) // 2] ^= 1
    return data


def _array(values):
    """A NIfTI file of the values that a function gives for a shape."""
    return lambda folder, dims: save(folder / "bad.nii.gz", values((SIZE,) * dims)).name


def _with(value):
    def values(shape):
        array = noise(len(shape))
        array.flat[7] = value
        return array

    return _array(values)


def _records(names):
    return _array(lambda shape: np.zeros(shape, np.dtype([(name, "u1") for name in names])))


def wrong_channels(folder, dims):
    array = np.random.default_rng(0).integers(0, 255, (*(SIZE,) * dims, 3), np.uint8)
    if dims == 2:
        Image.fromarray(array).save(folder / "bad.png")
        return "bad.png"
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(folder / "bad.nrrd"))
    return "bad.nrrd"


def _sform(*rows):
    def make(folder, dims):
        image = nib.Nifti1Image(noise(dims), None)
        image.header["pixdim"][1:4] = SPACING_MM
        image.set_sform(np.eye(4), 1)
        image.set_qform(None, 0)
        data = bytearray(image.to_bytes())
        data[280:328] = np.float32(rows).tobytes()  # nibabel would correct it
        (folder / "bad.nii").write_bytes(data)
        return "bad.nii"

    return make


def empty_folder(folder, dims):
    (folder / "bad").mkdir()
    return "bad"


def no_permission(folder, dims):
    save(folder / "bad.nii.gz", noise(dims)).chmod(0)
    return "bad.nii.gz"


def gzip_bomb(folder, dims):
    data = save(folder / "plain.nii", noise(dims)).read_bytes()
    with gzip.open(folder / "bad.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(data)
        for _ in range(80):
            stream.write(bytes(1 << 20))
    return "bad.nii.gz"


def missing_slice(folder, dims):
    save_planes(folder / "bad", positions(n=6)[[0, 1, 3, 4, 5]])
    return "bad"


def two_series(folder, dims):
    (folder / "bad").mkdir()
    for number in range(10):
        plane = make_plane(positions()[number % 5], number=number, SeriesInstanceUID=f"1.2.{3 + number // 5}")
        plane.save_as(folder / "bad" / f"{number}.dcm")
    return "bad"


def no_codec(folder, dims):
    names = ["bad.dcm"] if dims == 2 else [f"bad/bad{k}.dcm" for k in range(5)]
    (folder / names[0]).parent.mkdir(exist_ok=True)
    for k, name in enumerate(names):
        dataset = make_plane(positions()[k], number=k)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
        dataset.PixelData = encapsulate([bytes(100)])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(folder / name)
    return names[0].partition("/")[0]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
BOMB = np.array([3, 30000, 30000, 3000, 1, 1, 1, 1], np.int16).tobytes()
DEFECTS = {
    "truncated gz": _content("bad.nii.gz", lambda data: data[: int(0.7 * len(data))]),
    "truncated nii": _content("bad.nii", lambda data: data[: int(0.7 * len(data))]),
    "bit flip": _content("bad.nii.gz", bit_flip),
    "empty file": _content("bad.nii.gz", lambda data: b""),
    "web page": _content("bad.nii.gz", lambda data: b"<!DOCTYPE html><html>404 Not Found</html>"),
    "LFS pointer": _content("bad.nii.gz", lambda data: LFS),
    "wrong magic": _content("bad.nii", lambda data: _at(0, b"abcd")(_at(344, b"xyz\0")(data))),
    "NaN": _with(np.nan),
    "Inf": _with(np.inf),
    "constant": _array(lambda shape: np.full(shape, 7, np.float32)),
    "4D": _array(lambda shape: np.stack([noise(3, seed) for seed in range(3)], axis=-1)),
    "RGB": _records("RGB"),
    "wrong channels": wrong_channels,
    "zero spacing": _content("bad.nii", _at(84, np.float32(0).tobytes())),
    "negative spacing": _content("bad.nii", _at(84, np.float32(-1).tobytes())),
    "sheared affine": _sform((MM, 4, 0, 0), (0, MM, 0, 0), (0, 0, MM, 0)),
    "singular affine": _sform((MM, 0, 0, 0), (MM, 0, 0, 0), (0, 0, MM, 0)),
    "missing file": lambda folder, dims: "bad.nii.gz",
    "directory": empty_folder,
    "no permission": no_permission,
    "header bomb": _content("bad.nii", _at(40, BOMB)),
    "gz bomb": gzip_bomb,
    "DICOM missing slice": missing_slice,
    "DICOM two series": two_series,
    "DICOM without codec": no_codec,
    "complex": _array(lambda shape: noise(len(shape)).astype(np.complex64)),
    "struct": _records("RGBA"),
}
"""Each makes the files of a bad scan in a folder, and returns its path for the cohort's table. 24 kinds, three of them
in two ways. A sheared affine is no failure: the scan is read, with a warning."""

READ_WITH_A_WARNING = {"sheared affine"}


def cohort_with_all(folder, dims, num_good=8):
    """The table of good scans, and of one bad scan of each kind in the split ``train``; its id is ``bad-<kind>``."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(num_good):
        save(folder / f"good{k}.nii.gz", noise(dims, 1 + k))
    rows = [f"g{k},good{k}.nii.gz,{'val' if k < 2 else 'train'}" for k in range(num_good)]
    bad = []
    for kind, make in DEFECTS.items():
        name = kind.replace(" ", "_")
        (folder / name).mkdir()
        bad.append(f"bad-{name},{name}/{make(folder / name, dims)},train")
    middle = num_good // 2
    (folder / "cohort.csv").write_text("\n".join(["id,image,split", *rows[:middle], *bad, *rows[middle:]]) + "\n")
    return folder / "cohort.csv"
