"""Values that float32, in which scans are kept, cannot tell apart: told, and refused where nothing is left."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scan_files import refusal, values

from monai_diffae.data.scans import read_geometry, read_scan

SIGNAL = values(6, 7, 8).astype(np.float64) / values(6, 7, 8).max()  # 0..1, the brightest voxel 1


def save(path: Path, array: np.ndarray) -> Path:
    if path.suffix == ".nrrd":
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    else:
        nib.save(nib.Nifti1Image(array, np.eye(4), dtype=array.dtype), path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd"])
def test_a_signal_that_float32_loses_is_refused(tmp_path: Path, name: str) -> None:
    line = refusal(save(tmp_path / name, 1e9 + 20 * SIGNAL))
    assert "about 1e+09" in line
    assert "too close together" in line
    assert "subtract" in line


@pytest.mark.parametrize("name", ["a.nii", "a.nrrd"])
def test_a_signal_with_few_steps_is_logged_once(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / name, 1e9 + 6400 * SIGNAL)
    for _ in range(2):
        read_scan(path)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{name}: its values, about 1e+09, are close together: only")
    assert " 85 steps" in record.getMessage()


def test_slope_and_intercept_count(tmp_path: Path) -> None:
    image = nib.Nifti1Image((255 * SIGNAL).astype(np.uint8), np.eye(4))
    image.header.set_slope_inter(0.01, 1e8)
    nib.save(image, tmp_path / "a.nii")
    assert "too close together" in refusal(tmp_path / "a.nii")


@pytest.mark.parametrize(
    "array",
    [
        1e9 + 1e6 * SIGNAL,  # 15625 steps
        np.round(1e7 + 20 * SIGNAL),  # few levels, each kept
        np.round(1e7 + 20 * SIGNAL).astype(np.int32),
        1e-9 * SIGNAL,
        (1e9 + 640 * SIGNAL).astype(np.float32),  # lost before
        np.where(SIGNAL == 1, 1e9, SIGNAL),  # one voxel far away: small values keep their digits
    ],
)
def test_what_float32_holds_is_read_without_a_word(
    tmp_path: Path, array: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    read_scan(save(tmp_path / "a.nii", array))
    assert not caplog.records


def test_other_refusals_stay_what_they_were(tmp_path: Path) -> None:
    assert "same value" in refusal(save(tmp_path / "c.nii", np.full((3, 4, 5), 1e9 + 0.25)))
    assert "NaN or infinite" in refusal(save(tmp_path / "n.nii", np.where(SIGNAL == 1, np.nan, 1e9 + 6400 * SIGNAL)))
    assert "NaN or infinite" in refusal(save(tmp_path / "h.nii", 1e300 * SIGNAL))


def test_a_sheared_affine_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    for name in ("a.nii", "b.nii"):
        image = nib.Nifti1Image(SIGNAL.astype(np.float32), None)
        image.set_sform(affine, 1)
        nib.save(image, tmp_path / name)
    for _ in range(2):
        for name in ("a.nii", "b.nii"):
            read_geometry(tmp_path / name)
            read_scan(tmp_path / name)
    assert [record.getMessage() for record in caplog.records] == [
        f"{name}: its affine is sheared; distances are approximate" for name in ("a.nii", "b.nii")
    ]
