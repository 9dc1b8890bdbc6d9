"""Which share of a change lies in the mask of a case, and what edit and explain say about it."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from monai_diffae import edit
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Run
from monai_diffae.apps.synthesis.edit import mask_notes, shares_in_mask
from monai_diffae.data.scans import read_scan, write_scan


@pytest.fixture(scope="module")
def masked(labelled, tmp_path_factory):
    """The cohort of ``labelled``: two cases with a mask, one with an empty one, others with none."""
    folder, table = tmp_path_factory.mktemp("masked"), pd.read_csv(labelled.cohort)
    for row in range(3):
        scan = nib.load(table["image"][row])
        mask = np.zeros(scan.shape, np.uint8)
        mask[4:9, 3:7] = row < 2
        nib.save(nib.Nifti1Image(mask, scan.affine), folder / f"{row}.nii.gz")
        table.loc[row, "mask"] = str(folder / f"{row}.nii.gz")
    table.to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def test_planted_changes_are_inside_or_outside(unusual, tmp_path):
    """Each channel counts in the model's range."""
    session = Session.open(unusual.bundle, unusual.cohort, run=Run(device="cpu"))
    case = session.cohort.cases[0]
    mask = np.zeros((1, *read_scan(case.first_file).array.shape[1:]))
    mask[:, :5] = 1
    marked = replace(case, mask=write_scan(tmp_path / "mask.png", mask, value_range=(0, 1)))
    opened = session.trained.open(marked)
    native, scan = opened.native, opened.scan.array
    change = scan[:, ::-1] + np.float32(1)
    inside, outside, both = (shares_in_mask(opened, change * where) for where in (mask, 1 - mask, 1))
    size = np.abs(native.to_model_range(scan + change) - native.to_model_range(scan))
    assert (inside["change_in_mask"], outside["change_in_mask"]) == (1, 0)
    assert both["change_in_mask"] == pytest.approx(size[:, :5].sum() / size.sum(), rel=1e-4)
    tissue = (native.to_model_range(scan) > -0.8).any(axis=0)
    assert both["mask_share"] == pytest.approx(mask.sum() / (tissue | (mask[0] > 0)).sum())
    without = session.trained.open(case)
    for where, shares in ((tissue, [1, 0]), (~tissue, [0, 1])):  # of brightness, and outside
        assert [*shares_in_mask(without, where + 0 * scan).values()] == pytest.approx(shares)


def test_edit_writes_the_shares_of_the_written_differences(labelled, masked, tmp_path):
    made = edit(labelled.bundle, masked, tmp_path, direction=labelled.direction, strengths=[2], limit=4, device="cpu")
    table = pd.read_csv(made.folder / "edits.csv")
    rows = table[table["change_in_mask"].notna()]
    assert rows["id"].tolist() == table["id"].unique()[:2].tolist()  # no cells at strength 0, nor without a lesion
    size = np.abs(nib.load(made.folder / "differences" / f"{rows['id'].iloc[0]}_+2.00.nii.gz").get_fdata())
    share = size[nib.load(pd.read_csv(masked)["mask"][0]).get_fdata() > 0].sum() / size.sum()
    assert rows["change_in_mask"].iloc[0] == pytest.approx(share, rel=1e-5)
    assert made.change_in_mask == pytest.approx(rows["change_in_mask"].mean())
    assert table["change_outside"].count() == 1  # of the case without a mask: those with an empty one have no cells


def test_a_change_that_is_not_at_the_lesion_is_said_to_be_one():
    assert mask_notes({"change_in_mask": 0.06, "mask_share": 0.04})[0].startswith("the change is not at the lesion: 6%")
    for share, chance in ((0.21, 0.04), (0.95, 0.6)):  # twice .6 is more than all: the odds count
        assert "not" not in mask_notes({"change_in_mask": share, "mask_share": chance})[0]
    assert "without masks: 60%" in mask_notes({"change_of_brightness": 0.6, "change_outside": 0.25})[0]
