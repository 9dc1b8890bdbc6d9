"""The commands of docs/tumours.md, at a small size: sequences and masks from a folder to a probe and edits."""

import json
import re
import shlex
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scan_files import shared

from monai_diffae.cli import build_app

PAGE = "docs/tumours.md"
SMALL = (
    "max_epochs=1 val_interval=1 image_size=[16,16] channel_mult=[1,2] base_channels=8 z_channels=32 "
    "anchored_channels=24 num_pictures=2 picture_steps=2 calibration_cases=2 mlflow=false seed=1"
)
SMALL_3D = "image_size=[16,16,8] spacing_mm=[2,2,2]"  # which replaces the image size of slices


def brains(folder):
    """Eight patients in the layout of the Decathlon: from the shared data, or noise with a bright spot."""
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(8):
        mask = np.zeros((24, 24, 8), np.uint8)
        mask[4:10, 8:14, 2:6] = 1
        image = rng.integers(20, 90, (24, 24, 8, 3)) + 80 * mask[..., None]
        for part, array in (("imagesTr", image.astype(np.uint8)), ("labelsTr", mask)):
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / part / f"BRATS_{number:03d}.nii.gz")
    names = {"0": "T1", "1": "FLAIR", "2": "T1c"}
    (folder / "dataset.json").write_text(json.dumps({"modality": names}))


def real_brains(folder):
    source = shared("lgg_mri_128")
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for file in sorted((source / part).glob("*.nii.gz"))[:8]:
            scan = nib.load(file)
            nib.save(nib.Nifti1Image(np.asarray(scan.dataobj)[::4, ::4, ::3], np.eye(4)), folder / part / file.name)
    shutil.copy(source / "dataset.json", folder)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "codes"), [(brains, {0}), (real_brains, {0, 3})])  # 3: slices without a head
def test_the_commands_run(make, codes, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "Task01_BrainTumour")
    text = (request.config.rootpath / PAGE).read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S) for line in block.splitlines()]
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] == "train":
            small = (SMALL if "brains" in line else SMALL.replace("image_size=[16,16] ", f"{SMALL_3D} ")).split()
            keys = {word.partition("=")[0] for word in small}
            words = [word for word in words if word.partition("=")[0] not in keys] + small
        elif words[0] in ("embed", "edit", "probe"):
            words += ["--device", "cpu"] if words[0] != "probe" else ["--evaluation", "cv"]
        if "nodules.csv" in line and not (tmp_path / "nodules.csv").exists():
            table = pd.read_csv("brains.csv").rename(columns={"FLAIR": "image"})[["image", "mask"]]
            table.assign(malignancy=[1, 2] * 4, diameter_mm=np.arange(8.0)).to_csv("nodules.csv", index=False)
        assert (build_app().meta(words) or 0) in codes, line
    table = pd.read_parquet("embedded/embeddings.parquet")
    assert set(table["mask_present"]) == {0, 1}
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert pd.read_csv("edited/edits.csv")["change_in_mask"].between(0, 1).any()
