"""Volumes of less than two voxels at the wanted spacing are failed cases, each in one line; others pass."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from monai_diffae.data.cached import CachedCases
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.transforms import SmoothForSpacingd

BUNDLES = Path(__file__).parents[2] / "bundles"


def volume(shape, spacing):
    values = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    return MetaTensor(values, affine=torch.diag(torch.tensor([*spacing, 1.0])))


def test_a_spacing_that_leaves_less_than_two_voxels_is_named():
    item = {"id": "case-7", "image": volume((35, 51, 36), (1.0, 1.0, 1.0))}
    with pytest.raises(ScanError) as caught:
        SmoothForSpacingd("image", [30, 10, 10])(item)
    assert str(caught.value) == (
        "case-7: 35 x 51 x 36 mm are less than 2 voxels along an axis at spacing_mm 30 x 10 x 10; choose a finer "
        "spacing"
    )
    assert SmoothForSpacingd("image", [17.5, 10, 18])(item)["image"].shape == (1, 35, 51, 36)


@pytest.mark.goal(id="R15")
def test_a_wrong_spacing_does_not_ask_for_all_memory():
    item = {"id": "case-7", "image": volume((16, 16, 16), (1e6, 1.0, 1.0))}
    with pytest.raises(ScanError) as caught:
        SmoothForSpacingd("image", [1, 1, 1])(item)
    assert str(caught.value) == (
        "case-7: 1.6e+07 x 16 x 16 mm are 15.3 GiB at spacing_mm 1 x 1 x 1, and the limit is 2 GiB; correct the scan's "
        "spacing or unit, or choose a coarser spacing"
    )


def test_few_thick_slices_that_stay_as_they_are_pass():
    item = {"id": "thick", "image": volume((30, 30, 2), (1.0, 1.0, 8.0))}
    assert SmoothForSpacingd("image", [2, 2, 8])(item)["image"].shape == (1, 30, 30, 2)


def test_a_spacing_of_another_number_of_axes_is_no_fault_of_the_scan():
    with pytest.raises(ConfigError, match="must be 3 numbers, one per axis"):
        SmoothForSpacingd("image", [2, 2])({"image": volume((8, 8, 8), (1.0, 1.0, 1.0))})


@pytest.mark.parametrize("bundle", ["diffae_3d", "autoencoder_kl_3d"])
def test_in_a_bundle_such_a_scan_fails_and_the_others_are_read(bundle, tmp_path):
    rng = np.random.default_rng(0)
    items = []
    for name, shape in (("small", (12, 20, 20)), ("large", (40, 40, 40))):
        nib.save(nib.Nifti1Image(rng.random(shape, np.float32), np.eye(4)), tmp_path / f"{name}.nii")
        items.append({"id": name, "image": str(tmp_path / f"{name}.nii")})
    config = json.loads((BUNDLES / bundle / "configs" / "train.json").read_text())
    parser = ConfigParser({**config, "spacing_mm": [8, 8, 8], "image_size": [8, 8, 8]})
    cases = CachedCases(items, parser.get_parsed_content("preprocessing"), cache="memory", keys=["image"])
    assert [item["id"] for item in cases.items] == ["large"]
    (failure,) = cases.failures
    assert (failure.case_id, failure.file) == ("small", "small.nii")
    assert "12 x 20 x 20 mm" in failure.reason
    assert "spacing_mm 8 x 8 x 8" in failure.reason
