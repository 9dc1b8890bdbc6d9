"""Goal R6: each of 24 defects is one line on the console, and the other scans are processed."""

import csv
import re

import numpy as np
import pandas as pd
import pytest
import torch
from defects import DEFECTS, READ_WITH_A_WARNING, SIZE, SPACING_MM, cohort_with_all
from scan_files import as_nobody

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.data import progress
from monai_diffae.data.embeddings import z_matrix

pytestmark = pytest.mark.goal(id="R6")

LONGEST_LINE = 200


@pytest.fixture(autouse=True)
def all_lines(monkeypatch):
    """Not only the first five bad cases have a line on the console."""
    monkeypatch.setattr(progress, "_MOST_WARNINGS", 100)


def check(code, log, folder, record_property):
    assert code == 3, log
    assert "Traceback" not in log
    with open(folder / "failures.csv", newline="") as stream:
        rows = {(row["case_id"].partition("_z")[0], row["reason"]) for row in csv.DictReader(stream)}
    reasons = dict(rows)
    lengths = []
    for defect in DEFECTS:
        case = f"bad-{defect.replace(' ', '_')}"
        pattern = "affine is sheared" if defect in READ_WITH_A_WARNING else rf"{case}(_z\d+)? skipped"
        lines = [line for line in log.splitlines() if re.search(pattern, line)]
        assert len(lines) == 1, (defect, lines)
        assert len(lines[0]) <= LONGEST_LINE
        lengths.append(len(lines[0]))
        if defect in READ_WITH_A_WARNING:
            assert case not in reasons
            continue
        _, _, reason = lines[0].partition("skipped: ")
        file, _, rest = reason.partition(": ")
        assert file.startswith("bad"), reason
        assert "; " in rest, reason
        assert reasons.pop(case) == reason
    assert not reasons
    record_property("figure", f"{len(lengths)} defects, one line each, of at most {max(lengths)} characters")


@pytest.mark.goal(id="R7")
@pytest.mark.parametrize(("model", "scans"), [("2d", 2), ("3d", 3), ("2d", 3)])
def test_embed_skips_each_in_one_line_and_others_are_the_same(
    console, request, model, scans, tmp_path, record_property
):
    bundle = request.getfixturevalue("tiny_bundle" if model == "2d" else "tiny_bundle_3d").directory
    cohort, out = cohort_with_all(tmp_path / "scans", scans), tmp_path / "out"
    with as_nobody():
        code, log = console("embed", bundle, cohort, out, "--device", "cpu", "--workers", 0)
    check(code, log, out, record_property)
    table = pd.read_parquet(out / "embeddings.parquet")
    slices = 3 if (model, scans) == ("2d", 3) else 1
    expected = ["g0", "g1", "g2", "g3", "bad-sheared_affine", "g4", "g5", "g6", "g7"]
    assert [id.partition("_z")[0] for id in table["id"]] == [id for id in expected for _ in range(slices)]
    good = "\n".join(line for line in cohort.read_text().splitlines() if line[:3] != "bad")
    (cohort.parent / "good.csv").write_text(good)
    alone = embed(bundle, cohort.parent / "good.csv", tmp_path / "alone", device="cpu", workers=0).path
    is_good = table["id"].str.startswith("g")
    np.testing.assert_array_equal(z_matrix(table[is_good]), z_matrix(pd.read_parquet(alone)))


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
def test_train_skips_each_in_one_line(console, tiny_settings, dims, tmp_path, record_property):
    cohort, bundle = cohort_with_all(tmp_path / "scans", dims), init_bundle(tmp_path / "bundle", f"diffae_{dims}d")
    settings = tiny_settings | {"image_size": [SIZE] * dims, "batch_size": 1}
    if dims == 3:
        settings["spacing_mm"] = [SPACING_MM] * 3
    overrides = [f"{key}={str(value).replace(' ', '')}" for key, value in settings.items()]
    with as_nobody():
        code, log = console("train", bundle, cohort, "--workers", 0, "--overrides", *overrides)
    check(code, log, bundle, record_property)
    steps = torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)["trainer"]["iteration"]
    assert steps == 6 + len(READ_WITH_A_WARNING)
