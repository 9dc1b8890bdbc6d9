"""Goal R6: each of 24 defects is one line on the console, and the other scans are processed."""

from __future__ import annotations

import contextlib
import csv
import itertools
from pathlib import Path

import pandas as pd
import pytest
import torch
from defects import DEFECTS, READ_WITH_A_WARNING, SIZE, SPACING_MM, as_plain_user, cohort_with

from monai_diffae.bundle.folders import init_bundle

pytestmark = pytest.mark.goal(id="R6")

LONGEST_LINE = 200
EACH = [*itertools.product(DEFECTS, (2, 3))]


def check(defect: str, code: object, log: str, folder: Path, record_property) -> None:
    lines = [line for line in log.splitlines() if "bad-case" in line or "bad." in line or "bad:" in line]
    assert len(lines) == 1, log
    assert len(lines[0]) <= LONGEST_LINE
    assert "Traceback" not in log
    record_property("length", len(lines[0]))
    if defect in READ_WITH_A_WARNING:
        assert code == 0
        assert not (folder / "failures.csv").exists()
        return
    assert code == 3, log
    assert "bad-case" in lines[0]
    _, _, reason = lines[0].partition("skipped: ")
    file, _, rest = reason.partition(": ")
    assert file.startswith("bad"), reason
    assert "; " in rest, reason
    with open(folder / "failures.csv", newline="") as stream:
        rows = [(row["case_id"].partition("_z")[0], row["reason"]) for row in csv.DictReader(stream)]
    assert set(rows) == {("bad-case", reason)}


def _user(defect: str) -> contextlib.AbstractContextManager[None]:
    return as_plain_user() if defect == "no permission" else contextlib.nullcontext()


@pytest.fixture
def bundle(request, dims):
    return request.getfixturevalue("tiny_bundle" if dims == 2 else "tiny_bundle_3d").directory


@pytest.mark.parametrize(("defect", "dims"), EACH)
def test_embed_skips_it_in_one_line(console, bundle, defect, dims, tmp_path, record_property):
    cohort, out = cohort_with(tmp_path / "scans", defect, dims), tmp_path / "out"
    with _user(defect):
        code, log = console("embed", bundle, cohort, out, "--device", "cpu", "--workers", 0)
    check(defect, code, log, out, record_property)
    ids = pd.read_parquet(out / "embeddings.parquet")["id"].tolist()
    assert [id for id in ids if id != "bad-case"] == [f"g{k}" for k in range(8)]
    assert ("bad-case" in ids) == (defect in READ_WITH_A_WARNING)


@pytest.mark.parametrize("defect", ["truncated gz", "NaN", "wrong channels", "DICOM without codec"])
def test_the_slices_of_a_bad_volume_are_one_line(console, tiny_bundle, defect, tmp_path, record_property):
    cohort, out = cohort_with(tmp_path / "scans", defect, 3), tmp_path / "out"
    code, log = console("embed", tiny_bundle.directory, cohort, out, "--device", "cpu", "--workers", 0)
    check(defect, code, log, out, record_property)
    assert len(pd.read_parquet(out / "embeddings.parquet")) == 8 * 3  # of each volume, the bundle takes three slices


@pytest.mark.slow
@pytest.mark.parametrize(("defect", "dims"), EACH)
def test_train_skips_it_in_one_line(console, tiny_settings, defect, dims, tmp_path, record_property):
    cohort, bundle = cohort_with(tmp_path / "scans", defect, dims), tmp_path / "bundle"
    init_bundle(bundle, f"diffae_{dims}d")
    settings = tiny_settings | {"image_size": [SIZE] * dims, "batch_size": 1}
    if dims == 3:
        settings["spacing_mm"] = [SPACING_MM] * 3
    overrides = [f"{key}={str(value).replace(' ', '')}" for key, value in settings.items()]
    with _user(defect):
        code, log = console("train", bundle, cohort, "--workers", 0, "--overrides", *overrides)
    check(defect, code, log, bundle, record_property)
    steps = torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)["trainer"]["iteration"]
    assert steps == 6 + (defect in READ_WITH_A_WARNING)
