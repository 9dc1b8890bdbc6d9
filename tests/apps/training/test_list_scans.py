"""The command list-scans: its lines, its figures and the next command."""

import json

from monai_diffae.apps.training.list_scans import list_scans
from monai_diffae.data.cohorts import read_cohort


def test_a_folder_becomes_a_table(tmp_path):
    for name in ("benign/a.png", "benign/b.png", "malignant/c.png", "malignant/d.png", "malignant/e.tif"):
        (tmp_path / "us" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "us" / name).write_bytes(b"...")
    result = list_scans(tmp_path / "us", tmp_path / "scans.csv")
    assert list(result.lines()) == [
        "us: 4 scans (4 .png)",
        "patients: not known, so each scan counts as one (patient_pattern finds them in the paths)",
        "files that cannot be read are left out: 1 .tif; convert them to .nii.gz or .png",
        "the folders benign, malignant are classes: column label (no_labels_from_folders omits it)",
        "label label: 2 benign, 2 malignant",
        str(tmp_path / "scans.csv"),
        f"next: monai-diffae plan {tmp_path / 'scans.csv'}",
    ]
    assert json.loads(json.dumps(result.figures()))["labels"] == {"label": {"benign": 2, "malignant": 2}}
    assert len(read_cohort(result.table)) == 4
    assert list_scans(tmp_path / "us", tmp_path / "scans.csv").table == result.table
