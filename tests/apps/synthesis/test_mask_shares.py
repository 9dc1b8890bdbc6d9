"""Which share of a change lies in the mask of a case, and what edit and explain say about it."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from monai_diffae import edit
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Reading, Run
from monai_diffae.apps.synthesis.edit import mask_notes, mean_shares, shares_in_mask
from monai_diffae.data.scans import read_scan, write_scan
from monai_diffae.transforms import NativeSpace


@pytest.fixture(scope="module")
def masked(labelled, tmp_path_factory):
    """The cohort of ``labelled``: two cases with a mask, one with an empty one, others with none."""
    folder = tmp_path_factory.mktemp("masked")
    table = pd.read_csv(labelled.cohort)
    for row in range(3):
        scan = nib.load(table["image"][row])
        mask = np.zeros(scan.shape, np.uint8)
        mask[4:9, 3:7] = row < 2
        nib.save(nib.Nifti1Image(mask, scan.affine), folder / f"{row}.nii.gz")
        table.loc[row, "mask"] = str(folder / f"{row}.nii.gz")
    table.to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def opened(bundle, cohort, row=0):
    session = Session.open(bundle, cohort, reading=Reading(), run=Run(device="cpu"))
    case = session.cohort.cases[row]
    return session, case, NativeSpace(session.trained.preprocessing, case.item())


def test_planted_changes_are_inside_or_outside(labelled, masked):
    session, case, native = opened(labelled.bundle, masked)
    mask = read_scan(case.mask).array > 0
    noise = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
    inside, outside = (shares_in_mask(session, case, native, noise * where) for where in (mask, ~mask))
    assert (inside["change_in_mask"], outside["change_in_mask"]) == (1, 0)
    everywhere = shares_in_mask(session, case, native, np.ones_like(noise))
    assert everywhere["change_in_mask"] == pytest.approx(mask.mean())
    is_tissue = native.to_model_range(native.scan.array) > -0.8
    assert everywhere["mask_share"] == pytest.approx(mask.sum() / (is_tissue | mask).sum())


def test_a_mask_on_another_grid_counts_where_the_scan_has_it(tiny_bundle_3d, tmp_path):
    table = pd.read_csv(tiny_bundle_3d.cohort)
    file = tiny_bundle_3d.cohort.parent / table["image"][0]
    scan, first = read_scan(file), np.diag([1.0, 1, 1, 1])
    first[:3, 3] = 4
    write_scan(tmp_path / "mask.nii.gz", np.pad(np.ones((1, 3, 3, 3)), ((0, 0), *[(1, 1)] * 3)), scan.affine @ first)
    pd.DataFrame({"image": [file], "mask": ["mask.nii.gz"]}).to_csv(tmp_path / "one.csv", index=False)
    session, case, native = opened(tiny_bundle_3d.directory, tmp_path / "one.csv")
    change = np.zeros_like(scan.array)
    change[:, 5:8, 5:8, 5:8] = 1
    assert shares_in_mask(session, case, native, change)["change_in_mask"] == 1


def test_each_channel_counts_in_the_range_of_the_model(unusual, tmp_path):
    session, case, native = opened(unusual.bundle, unusual.cohort)
    mask = np.zeros((1, *native.scan.array.shape[1:]))
    mask[:, :5] = 1
    case = replace(case, mask=write_scan(tmp_path / "mask.png", mask, value_range=(0, 1)))
    change = np.random.default_rng(0).normal(size=native.scan.array.shape).astype(np.float32)
    size = np.abs(native.to_model_range(native.scan.array + change) - native.to_model_range(native.scan.array))
    share = shares_in_mask(session, case, native, change)["change_in_mask"]
    assert share == pytest.approx(size[:, :5].sum() / size.sum(), rel=1e-4)


def test_edit_writes_the_shares_of_the_written_differences(labelled, masked, tmp_path):
    made = edit(labelled.bundle, masked, tmp_path, direction=labelled.direction, strengths=[2], limit=4, device="cpu")
    table = pd.read_csv(made.folder / "edits.csv")
    rows, shares = table[table["change_in_mask"].notna()], []
    assert rows["id"].tolist() == table["id"].unique()[:2].tolist()  # no cells at strength 0, nor without a lesion
    for name, mask in zip(rows["id"], pd.read_csv(masked)["mask"], strict=False):
        size = np.abs(nib.load(made.folder / "differences" / f"{name}_+2.00.nii.gz").get_fdata())
        shares.append(size[nib.load(mask).get_fdata() > 0].sum() / size.sum())
    np.testing.assert_allclose(rows["change_in_mask"], shares, rtol=1e-5)
    assert made.change_in_mask == pytest.approx(np.mean(shares))
    assert any("by chance" in note for note in made.notes)


def test_a_change_that_is_not_at_the_lesion_is_said_to_be_one():
    assert mask_notes({}) == []
    (note,) = mask_notes({"change_in_mask": 0.21, "mask_share": 0.04})
    assert note == "the change lies in the mask: 21% (4% by chance)"
    (note,) = mask_notes({"change_in_mask": 0.06, "mask_share": 0.04})
    assert note == "the change is not at the lesion: 6% of it lies in the mask (4% by chance)"
    assert "not" not in mask_notes({"change_in_mask": 0.95, "mask_share": 0.6})[0]  # twice .6 is more than all
    assert mean_shares(pd.DataFrame({"id": ["a"], "mse": [1.0]})) == {}
