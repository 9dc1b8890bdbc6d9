"""Scan files, good and bad, made for the tests."""

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_diffae.data.scans import ScanNeeds, read_scan
from monai_diffae.errors import ScanError

OBLIQUE = np.array([[-0.9, 0.1, 0.3, 40.0], [0.1, 1.1, -0.2, -70.0], [0.1, 0.2, 2.9, 13.0], [0, 0, 0, 1]])
SHARED = Path(__file__).parents[3] / "shared" / "data"
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real data {name} are not here")
    return path


def refusal(path, **wanted):
    """The one line that refuses a file."""
    with pytest.raises(ScanError) as caught:
        read_scan(path, ScanNeeds(**wanted))
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) <= 200
    assert str(Path(path).parent) not in line
    assert "; " in line
    return line


@contextlib.contextmanager
def no_file_larger_than(limit):
    """As on a full disk: no file grows beyond so many bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def grown_mb(call):
    """By how much the largest memory of this process grows during a call, in MB."""
    status = Path("/proc/self/status")

    def peak():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the largest so far
    except OSError:
        pytest.skip("this machine does not measure the largest memory of a call")
    before = peak()
    call()
    return peak() - before


@contextlib.contextmanager
def as_nobody(folder=None):
    """Without root's rights to everything; ``folder`` and the folders in it may then be entered, and not written.

    The user stays root: another one could not import modules or enter pytest's folders.
    """
    folders = [] if folder is None else [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for each in folders:
        each.chmod(0o555)
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    rights = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, each twice
    assert libc.capget(header, rights) == 0, os.strerror(ctypes.get_errno())
    before = rights[0]
    rights[0] &= ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
    assert libc.capset(header, rights) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        rights[0] = before
        libc.capset(header, rights)


def values(*shape):
    return np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)


def save_nifti(path, array=None, affine=None):
    image = nib.Nifti1Image(values(5, 6, 7) if array is None else array, np.eye(4) if affine is None else affine)
    nib.save(image, path)
    return path
