"""A model that sees the box around a mask, or its inside: native space is kept."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from tiny_bundles import TINY, TINY_3D

from monai_diffae import embed, train
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.loading import load_untrained
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.formats.axes import slice_volume
from monai_diffae.data.scans import read_scan
from monai_diffae.transforms import NativeSpace


def write_cohort(folder: Path) -> None:
    """Six patients with a lesion, and one without a mask."""
    folder.mkdir()
    for k in range(7):
        image = np.random.default_rng(k).normal(100, 20, (20, 24, 22)).astype(np.float32)
        mask = np.zeros(image.shape, np.uint8)
        mask[4:12, 4:16, 5:14] = 1
        mask[4, 4, 5] = 0
        for name, array in {f"p{k}": image, **({f"p{k}_mask": mask} if k else {})}.items():
            nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), folder / f"{name}.nii.gz")


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("region", ["box", "masked"])
def test_the_own_image_is_the_scan_inside_the_region(tmp_path, spatial_dims, region):
    write_cohort(tmp_path / "scans")
    tiny, size = {2: (TINY, [12, 12]), 3: (TINY_3D, [16, 16, 16])}[spatial_dims]
    settings = {"region": region, "region_margin_mm": 0.0, "image_size": size}
    settings |= {"spacing_mm": [2.0] * 3} if spatial_dims == 3 else {}
    model = load_untrained(f"diffae_{spatial_dims}d", "cpu", {**tiny, **settings})
    case = read_cohort(tmp_path / "scans")[1]
    item = {"image": str(case.first_file), "mask": str(case.mask)} | ({"slice": 5} if spatial_dims == 2 else {})
    native = NativeSpace(model.preprocessing, item)
    back, scan = native.back(native.image), native.scan.array
    inside = read_scan(case.mask)
    inside = (slice_volume(inside, "axial", 5) if spatial_dims == 2 else inside).array > 0
    if region == "box":
        assert native.field.sum() == [864, 96][spatial_dims == 2]
        inside = native.field[None] | inside
    clipped = np.clip(scan[inside], back[inside].min(), back[inside].max())
    np.testing.assert_allclose(back[inside], clipped, atol=1e-3)
    assert (back[~inside] <= back[inside].min() + 1e-3).all()


@pytest.mark.slow
def test_a_model_of_boxes_trains_and_embeds_the_cases_with_masks(tmp_path):
    write_cohort(tmp_path / "scans")
    bundle = init_bundle(tmp_path / "bundle", "diffae_2d")
    train(bundle, tmp_path / "scans", overrides={**TINY, "region": "box", "slice_step": 4})
    embedded = embed(bundle, tmp_path / "scans", tmp_path / "z", device="cpu")
    ids = set(pd.read_parquet(embedded.path)["id"])
    assert {name.partition("_")[0] for name in ids} == {f"p{k}" for k in range(1, 7)}
    assert 'p0,p0.nii.gz,"has no mask, which region box needs; add it"' in (tmp_path / "z" / "failures.csv").read_text()
