import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
from tiny_bundles import rewrite, scaled

from monai_diffae import evaluate, reconstruct
from monai_diffae.apps.evaluation.quality import Reconstructions
from monai_diffae.apps.evaluation.quality_tables import MeasuredRows, difference_rows, mean_rows
from monai_diffae.apps.settings import Process
from monai_diffae.data.atomic import PartStore
from monai_diffae.errors import CohortError, ConfigError, OtherResultsError

FEW = {"steps": (2, 3), "device": "cpu"}


def evaluated(labelled, out, **options):
    arguments = {"bundle": labelled.bundle, "cohort": labelled.cohort, **FEW, **options}
    return evaluate(out, **arguments)


@pytest.fixture(scope="module")
def report(labelled, tmp_path_factory):
    return evaluated(labelled, tmp_path_factory.mktemp("evaluated"))


def value(content, table, metric, **condition):
    rows = [row for row in content["rows"] if row["table"] == table and row["metric"] == metric]
    (row,) = [row for row in rows if all(row[key] == value for key, value in condition.items())]
    return row["value"]


def test_the_files_say_the_same(report):
    content = json.loads((report.folder / "evaluation.json").read_text())
    cases = pd.read_csv(report.folder / "cases.csv")
    (bundle,) = content["bundles"]
    assert bundle.items() >= {"name": "bundle", "z_sem_dims": 8, "image_size": [16, 16], "spatial_dims": 2}.items()
    assert bundle["train_images_seen"] > 0
    assert (content["held_out"], content["split"], content["num_cases"]) == (True, "test", cases["id"].nunique())
    assert len(cases) == 2 * 2 * content["num_cases"]
    for table in ("reconstruction", "z_sem_only"):
        lines = pd.read_csv(report.folder / "tables" / f"{table}.csv", float_precision="round_trip")
        assert lines["steps"].tolist() == [2, 3]
        for steps, mse, low, high in lines[["steps", "mse", "mse_low", "mse_high"]].itertuples(index=False):
            own = cases[(cases["table"] == table) & (cases["steps"] == steps)]["mse"]
            assert mse == pytest.approx(own.mean())
            assert mse == value(content, table, "mse", steps=steps)
            assert low < mse < high
    text = (report.folder / "tables.md").read_text()
    assert f"{content['num_cases']} held-out cases" in text
    assert text.count("| bundle | adams | 2 |") == 2
    (omission,) = [each for each in content["omitted"] if each["metric"] == "ms_ssim"]
    assert omission["reason"] == "images of 16 x 16 are too small; it needs 176 along each axis"
    assert not any(row["metric"] == "ms_ssim" for row in content["rows"])
    assert text.count("ms_ssim") == 1


def test_the_figures_are_those_of_reconstruct(report, labelled, tmp_path):
    settings = {"overrides": {"inferer#invert_tolerance": None}, "split": "test", "steps": 3, "device": "cpu"}
    made = reconstruct(labelled.bundle, labelled.cohort, tmp_path, mode="both", **settings)
    table = pd.read_csv(made.folder / "reconstructions.csv").set_index("id")
    cases = pd.read_csv(report.folder / "cases.csv")
    both = cases[(cases["table"] == "reconstruction") & (cases["steps"] == 3)].set_index("id").loc[table.index]
    for metric in ("mse", "psnr", "ssim"):
        np.testing.assert_allclose(both[metric], table[f"{metric}_x_T"], rtol=1e-4)
    for metric in ("x_T_std", "x_T_neighbor_correlation"):
        np.testing.assert_allclose(both[metric], table[metric], rtol=1e-4, atol=1e-6)
    alone = evaluated(labelled, tmp_path / "one", draws=1)  # the first draw is that of reconstruct
    cases = pd.read_csv(alone.folder / "cases.csv")
    one = cases[(cases["table"] == "z_sem_only") & (cases["steps"] == 3)].set_index("id").loc[table.index]
    np.testing.assert_allclose(one["mse"], table["mse_z_sem"], rtol=1e-4)
    assert "diversity" not in cases


def test_an_interrupted_run_resumes(report, labelled, tmp_path, monkeypatch):
    original, calls, is_interrupted = Reconstructions._batch, [], [True]

    def batch(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2 and is_interrupted:
            is_interrupted.clear()
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Reconstructions, "_batch", batch)
    with pytest.raises(KeyboardInterrupt):
        evaluated(labelled, tmp_path)
    resumed = evaluated(labelled, tmp_path)
    assert len(calls) == 3  # two conditions, of which one was interrupted
    assert resumed.figures == report.figures
    with pytest.raises(OtherResultsError):
        evaluated(labelled, tmp_path, steps=[2])
    calls.clear()
    evaluated(labelled, tmp_path, overwrite=True)  # measures everything again
    assert len(calls) == 2


def test_bundles_are_compared_case_by_case(labelled, tmp_path):
    other = shutil.copytree(labelled.bundle, tmp_path / "other")
    rewrite(other, scaled(0.9))
    result = evaluated(labelled, tmp_path / "out", bundle=[labelled.bundle, other, labelled.bundle])
    content = result.figures
    assert [bundle["name"] for bundle in content["bundles"]] == ["bundle", "other", "bundle (2)"]
    for row in content["differences"]:
        condition = {key: row[key] for key in ("solver", "steps")}
        ours, reference = (
            value(content, row["table"], row["metric"], bundle=name, **condition) for name in (row["bundle"], "bundle")
        )
        assert row["value"] == pytest.approx(ours - reference, rel=1e-4, abs=1e-6)
        assert row["reference"] == "bundle"
        assert row["low"] <= row["value"] <= row["high"]
        if row["bundle"] == "bundle (2)":
            assert row["low"] == row["high"] == 0
    assert {row["bundle"] for row in content["differences"]} == {"other", "bundle (2)"}


def test_bundles_that_cannot_be_compared_or_measured_cost_one_line(labelled, tmp_path, caplog):
    other = shutil.copytree(labelled.bundle, tmp_path / "other")
    rewrite(other, image_size=[20, 20])
    empty = shutil.copytree(labelled.bundle, tmp_path / "empty", ignore=shutil.ignore_patterns("model.*"))
    result = evaluated(labelled, tmp_path / "out", bundle=[empty, labelled.bundle, other], steps=[2], num_codes=0)
    assert result.incomplete == "empty is left out"
    assert {row["bundle"] for row in result.figures["rows"]} == {"bundle", "other"}
    assert result.figures["differences"] == []
    (omission,) = [each for each in result.figures["omitted"] if each["metric"] == "differences"]
    assert omission["reason"] == "the preprocessing differs from that of bundle in image_size"
    assert omission["reason"] in caplog.text


def test_without_held_out_cases(labelled, tmp_path):
    pd.read_csv(labelled.cohort).assign(split="train").to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(CohortError, match="no case is in the split 'test'; choose another split"):
        evaluated(labelled, tmp_path / "out", cohort=tmp_path / "train.csv")
    with pytest.raises(ConfigError, match="split: train has the cases that the bundle was trained on; choose test, or"):
        evaluated(labelled, tmp_path / "out", split="train")
    pd.read_csv(labelled.cohort).drop(columns="split").to_csv(tmp_path / "drawn.csv", index=False)
    with pytest.raises(ConfigError, match="its cases may have been trained on; add a column split"):
        evaluated(labelled, tmp_path / "out", cohort=tmp_path / "drawn.csv")
    with pytest.raises(ConfigError):
        evaluated(labelled, tmp_path / "out", decoder="fast")
    assert not (tmp_path / "out").exists()
    result = evaluated(labelled, tmp_path / "out", split="train", not_held_out=True, limit=2, steps=[2])
    assert (result.figures["held_out"], result.figures["num_cases"]) == (False, 2)
    assert "may have been trained on" in (result.folder / "tables.md").read_text()


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(report, labelled, start_program, monkeypatch, tmp_path):
    out = tmp_path / "out"
    words = ["evaluate", out, "--bundle", labelled.bundle, "--cohort", labelled.cohort, "--steps", 2, 3]
    words += ["--device", "cpu", "--batch-size", 2]
    alone = evaluated(labelled, tmp_path / "alone", batch_size=2)
    for rank in (1, 0):  # the second process does not wait for the first
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, str(value))
        process = start_program(*words)
        process.join(120)
        assert process.exitcode == 0
        if rank == 1:
            rows = PartStore(out / ".parts", "evaluate").done()
            assert len(rows) == -(-alone.figures["num_cases"] // 2)  # half of the batches of two conditions
            assert not (out / "evaluation.json").exists()
    content = json.loads((out / "evaluation.json").read_text())
    assert content["rows"] == alone.figures["rows"]
    assert (out / "cases.csv").read_bytes() == (tmp_path / "alone" / "cases.csv").read_bytes()
    assert not (out / ".parts").exists()


def test_both_decoders_side_by_side(labelled, fast_bundle, tmp_path):
    few = {"bundle": fast_bundle, "limit": 2, "num_images": 2, "num_codes": 4}
    both = evaluated(labelled, tmp_path / "both", decoder=["exact", "fast"], steps=[3], **few).figures
    for table in ("reconstruction", "z_sem_only", "generation"):
        rows = {(row["solver"], row["steps"]) for row in both["rows"] if row["table"] == table and row["steps"]}
        assert rows == {("adams", 3), ("fast decoder", 2)}
    fast = evaluated(labelled, tmp_path / "fast", decoder="fast", **few).figures
    expected = [row for row in both["rows"] if row["solver"] == "fast decoder"]
    assert [row for row in fast["rows"] if row["steps"]] == expected


def case_rows(bundle, values, steps=10):
    return [
        {"table": "reconstruction", "bundle": bundle, "steps": steps, "id": f"c{i}", "mse": float(v)}
        for i, v in enumerate(values)
    ]


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(2, 40))


def test_a_mean_with_the_interval_of_its_patients(values):
    own = {f"c{i}": f"p{i}" for i in range(40)}
    (row,) = mean_rows(case_rows("a", values[0]), own)
    assert row["value"] == pytest.approx(values[0].mean())
    half = 1.96 * values[0].std() / np.sqrt(40)
    assert row["low"] == pytest.approx(row["value"] - half, abs=0.1 * half + 0.02)
    assert (row["bundle"], row["steps"], row["solver"], row["num_cases"]) == ("a", 10, None, 40)
    twice = np.repeat(values[0][:20], 2)  # two equal scans of each of 20 patients are worth 20 cases
    (row,) = mean_rows(case_rows("a", twice), {f"c{i}": f"p{i // 2}" for i in range(40)})
    (few,) = mean_rows(case_rows("a", values[0][:20]), own)
    assert row["high"] - row["low"] == pytest.approx(few["high"] - few["low"], rel=1e-9)


def test_differences_are_paired_over_common_cases(values):
    patients = {f"c{i}": f"p{i}" for i in range(40)}
    rows = [*case_rows("a", values[0]), *case_rows("b", values[0] + 0.1), *case_rows("c", values[1], steps=20)]
    (row,) = difference_rows(rows, "a", patients)
    assert (row["bundle"], row["reference"]) == ("b", "a")
    assert [row[key] for key in ("value", "low", "high")] == pytest.approx([0.1] * 3)
    (row,) = difference_rows([*case_rows("a", values[0]), *case_rows("b", values[1][:10])], "a", patients)
    assert row["num_cases"] == 10
    assert row["value"] == pytest.approx((values[1][:10] - values[0][:10]).mean())


def test_a_case_without_any_error_does_not_blank_the_mean_of_the_others(values):
    """The PSNR of an exact reconstruction is infinite."""
    patients = {f"c{i}": f"p{i}" for i in range(40)}
    (others,) = mean_rows(case_rows("a", values[0][1:]), {f"c{i}": f"p{i}" for i in range(39)})
    row, identical = mean_rows(case_rows("a", [np.inf, *values[0][1:]]), patients)
    assert row["value"] == pytest.approx(others["value"])
    assert (row["low"], row["high"]) == pytest.approx((others["low"], others["high"]), abs=0.05)
    assert (row["num_cases"], identical["metric"], identical["value"]) == (39, "mse_identical", 1)
    row, identical = mean_rows(case_rows("a", [np.inf, np.inf]), patients)
    assert (row["value"], row["low"], identical["value"]) == (None, None, 2)


def test_the_first_process_measures_what_another_one_does_not(tmp_path, caplog):
    rows = MeasuredRows(tmp_path / ".parts", {}, Process(0, 2), lambda: None, False, patience_s=0.05)
    with caplog.at_level(logging.WARNING, logger="monai_diffae"):
        shared = [rows.rows({"case": name}, lambda name=name: [{"id": name}], 1, shared=True) for name in "ab"]
    assert [row["id"] for each in shared for row in each] == ["a", "b"]
    assert caplog.messages == ["rank 1 has not measured its batch; this process measures it"]
