"""What scans look like, before anything is trained."""

import nibabel as nib
import numpy as np
from PIL import Image

from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.listing.appearance import look_at

RANDOM = np.random.default_rng(0)


def picture(path, *shape):
    Image.fromarray(RANDOM.integers(0, 256, shape, np.uint8)).save(path)


def test_kinds_sizes_colour_and_failures_are_described(tmp_path):
    picture(tmp_path / "a.png", 20, 30)
    picture(tmp_path / "b.png", 40, 30, 3)
    (tmp_path / "c.png").write_bytes(b"")
    values = RANDOM.normal(size=(10, 12, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 2.5, 1.0])), tmp_path / "v.nii.gz")
    appearance = look_at(read_cohort(tmp_path))
    assert list(appearance.lines()) == [
        "2 of 3 scans looked at are 2D images: 20-40 x 30",
        "1 of 3 scans looked at are volumes: 10 x 12 x 8, voxels of 1 x 1 x 2.5 mm",
        "1 are in colour: train with --colour grey or --colour rgb, or they are left out",
        "2D images and volumes are mixed: a 3D model leaves the images out, a 2D model slices the volumes",
        "1 cannot be read, the first: c.png: the file is empty; copy it again",
    ]
    assert appearance.figures() == {"num_images": 2, "num_volumes": 1, "num_colour": 1, "num_unreadable": 1}


def test_a_sample_is_spread_over_the_cohort(tmp_path):
    for i in range(20):
        picture(tmp_path / f"{i:02}.png", 8 + i, 8)
    assert look_at(read_cohort(tmp_path), limit=3).sizes == [(8, 8), (17, 8), (27, 8)]
