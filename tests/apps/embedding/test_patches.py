"""Positions of patches, compared with an independent computation from the file's affine with nibabel and numpy."""

from itertools import product

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.embeddings import read_embeddings, z_matrix

SETTINGS = {"spacing_mm": [3.0, 3.0, 3.0], "intensity": "none"}
SIDE = 16


def affine_of(angles, mirrored):
    """An affine with voxels of 3 mm, rotated, permuted and mirrored axes, and an origin far away."""
    affine = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(angles)):
        turn, (i, j) = np.eye(4), [k for k in range(3) if k != axis]
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        affine = turn @ affine
    affine[:3, :3] *= 3.0 * np.array(mirrored)
    affine[:3, 3] = 70, -120, 33
    return affine


@pytest.mark.parametrize("angles", [(0, 0, 0), (20, -35, 65), (80, 5, -100)])
@pytest.mark.parametrize("step", [16, 12])
def test_a_patch_has_the_voxels_around_its_position(tiny_bundle_3d, tmp_path, angles, step):
    volume = np.random.default_rng(0).uniform(-0.5, 0.5, (19, 40, 13)).astype(np.float32)
    image = nib.Nifti1Image(volume, affine_of(angles, (-1, 1, -1)))
    nib.save(image, tmp_path / "a.nii")
    made = embed(
        tiny_bundle_3d.directory, tmp_path / "a.nii", tmp_path / "out", patches=True, overlap=1 - step / SIDE,
        device="cpu", overrides=SETTINGS,
    )  # fmt: skip
    patches = read_embeddings(made.patches)

    upright = nib.as_closest_canonical(image)
    voxels = upright.get_fdata(dtype=np.float32)
    steps = [max(0, -(-(length - SIDE) // step)) for length in voxels.shape]
    before = [(SIDE + step * n - length) // 2 for n, length in zip(steps, voxels.shape, strict=True)]
    starts = [np.array(at) * step - before for at in product(*(range(n + 1) for n in steps))]
    assert any((start < 0).any() for start in starts)
    assert len(patches) == len(starts) > 2

    places = [upright.affine @ [*(start + (SIDE - 1) / 2), 1] for start in starts]
    np.testing.assert_allclose(patches[["x_mm", "y_mm", "z_mm"]], np.array(places)[:, :3], atol=1e-3)
    padded = np.pad(voxels, SIDE, constant_values=-1.0)
    windows = [padded[tuple(slice(s + SIDE, s + 2 * SIDE) for s in start)] for start in starts]
    trained = load_bundle(tiny_bundle_3d.directory, "cpu")
    z_sem = trained.inferer.encode(torch.from_numpy(np.stack(windows))[:, None], trained.network).numpy()
    np.testing.assert_allclose(z_matrix(patches), z_sem, rtol=1e-3, atol=1e-4 * np.abs(z_sem).max())
    assert np.ptp(z_sem, axis=0).max() > 1e-2 * np.abs(z_sem).max()
