import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.evaluation import diagnosis as usage_module
from monai_diffae.apps.evaluation.diagnosis import usage
from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure, write_failures
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.pictures.diagnosis import draw_usage


def of(labelled, out, **options):
    return usage(labelled.bundle, labelled.cohort, out, device="cpu", **{"split": None, "num_levels": 3, **options})


@pytest.fixture(scope="module")
def report(labelled, tmp_path_factory):
    return of(labelled, tmp_path_factory.mktemp("usage"))


def test_losses_by_level(report):
    levels = pd.read_csv(report.folder / "usage.csv")
    assert levels["timestep"].tolist() == [166, 500, 833]
    assert (levels["log_snr"].diff()[1:] < 0).all()
    np.testing.assert_allclose(levels["usage"], levels["loss_other"] / levels["loss_own"])
    np.testing.assert_allclose(levels["usage_mean"], levels["loss_mean"] / levels["loss_own"])
    assert report.figures["z_sem_usage"] == pytest.approx(levels["loss_other"].sum() / levels["loss_own"].sum())
    assert levels["loss_own"].nunique() == 3
    assert not np.allclose(levels["usage"], 1, atol=1e-6)


def test_stability_and_dimensions(report):
    rows = pd.read_csv(report.folder / "stability.csv").set_index("change")
    assert "other scan" not in rows.index
    assert rows["ratio"]["noise 1 %"] < rows["ratio"]["noise 5 %"]
    assert rows["ratio"]["shift 1 left-right"] > 0
    assert rows["rank_1"]["noise 1 %"] == 1
    dims = report.figures["dimensions"]
    assert dims["dims"] == 8
    assert 1 <= dims["active"] <= 8
    assert 1 <= dims["participation_ratio"] <= 8
    with Image.open(report.folder / "usage.png") as picture:
        assert np.asarray(picture).std() > 10


def test_the_batch_does_not_matter_and_a_second_call_skips(report, labelled, tmp_path):
    other = of(labelled, tmp_path / "o", batch_size=5)
    before, after = (pd.read_csv(folder / "usage.csv") for folder in (report.folder, other.folder))
    np.testing.assert_allclose(before, after, rtol=1e-5)
    before, after = ((folder / "stability.csv").read_text() for folder in (report.folder, other.folder))
    assert before == after
    again = of(labelled, report.folder)
    assert again.skipped
    assert again.figures == report.figures
    with pytest.raises(ConfigError, match="made with other num_levels"):
        of(labelled, report.folder, num_levels=2)
    assert "mni" not in (report.folder / "usage.json").read_text()


def test_other_scans_of_a_patient_are_found_and_not_taken_for_others(labelled, tmp_path):
    table = pd.read_csv(labelled.cohort).iloc[:8]
    table["patient"] = [f"p{i // 2}" for i in range(8)]
    table["split"] = "val"
    for i in range(0, 8, 2):  # the second scan is the first once more, in another file
        copy = tmp_path / f"again_{i}.nii.gz"
        shutil.copy(table["image"][i], copy)
        table.loc[i + 1, "image"] = str(copy)
    table.to_csv(tmp_path / "twice.csv", index=False)
    result = usage(labelled.bundle, tmp_path / "twice.csv", tmp_path / "o", num_levels=1, device="cpu")
    rescans = next(row for row in result.figures["stability"] if row["change"] == "other scan")
    assert (rescans["ratio"], rescans["rank_1"], rescans["num_cases"]) == (0, 1, 8)


def test_a_decoder_that_ignores_z_sem_has_a_usage_of_1(labelled, tmp_path):
    import torch

    bundle = shutil.copytree(labelled.bundle, tmp_path / "bundle")
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    heeding = [name for name in weights if "z_proj" in name or "z_map" in name]
    assert heeding, sorted(weights)
    for name in heeding:
        weights[name].zero_()
    torch.save(weights, bundle / "models" / "model.pt")
    result = usage(bundle, labelled.cohort, tmp_path / "o", split=None, num_levels=2, device="cpu")
    assert result.figures["z_sem_usage"] == pytest.approx(1, abs=1e-6)
    assert result.figures["z_sem_usage_mean"] == pytest.approx(1, abs=1e-6)


def test_of_volumes(tiny_bundle_3d, tmp_path):
    result = usage(
        tiny_bundle_3d.directory, tiny_bundle_3d.cohort, tmp_path, split="train", limit=3, num_levels=1, device="cpu"
    )
    assert result.num_cases == 3
    assert "flip front-back" in {row["change"] for row in result.figures["stability"]}


def test_the_encoders_own_image_is_what_changes(unusual, tmp_path):
    result = usage(unusual.bundle, unusual.cohort, tmp_path / "o", split=None, num_levels=1, device="cpu")
    assert result.num_cases == 10
    rows = {row["change"]: row for row in result.figures["stability"]}
    assert rows["flip left-right"]["ratio"] > rows["noise 1 %"]["ratio"] > 0
    table = pd.read_parquet(embed(unusual.bundle, unusual.cohort, tmp_path / "e", device="cpu").path)
    assert result.figures["dimensions"]["dims"] == len(table.filter(regex=r"z_\d+").columns)


def test_memory_does_not_grow_with_the_square_of_the_cases():
    n = 3000
    cases = [Case(f"c{i}", {"image": Path(f"{i}.png")}, patient=f"p{i // 3}") for i in range(n)]
    z = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    tracemalloc.start()
    try:
        people = usage_module._People.of(cases)
        people.with_others(z)
        usage_module._stability({usage_module.UNCHANGED: z, "noise": z + np.float32(0.1)}, people)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * n**2  # bytes; a mask of all pairs of cases and their distances take 17 n**2


def test_few_patients_are_said(labelled, tmp_path, monkeypatch, caplog):
    of(labelled, tmp_path / "few", num_levels=1)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "12 cases of 12 patients are few: other patients may give other figures; take 30 patients or more"
    ]
    caplog.clear()
    monkeypatch.setattr(usage_module, "_FEW_PATIENTS", 12)
    of(labelled, tmp_path / "enough", num_levels=1)
    assert "are few" not in caplog.text


def test_wrong_arguments_are_one_line(labelled, tmp_path):
    with pytest.raises(ConfigError, match="batch_size: 0 is below 1"):
        of(labelled, tmp_path, batch_size=0)
    with pytest.raises(CohortError, match="the cases are of one patient"):
        of(labelled, tmp_path, limit=1)


def test_a_ratio_of_1_looks_like_1(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: drawn.append(figure) or save(figure, *a, **k))
    stability = pd.DataFrame({"change": ["noise"], "ratio": [0.1], "ratio_90": [0.2], "rank_1": [1.0]})
    for ratios in ([1 + 1.6e-5, 1 + 2e-6], [0.9, 1.6]):
        losses = {"timestep": [250, 750], "loss_own": [1.0, 1.0], "loss_mean": ratios, "loss_other": ratios}
        levels = pd.DataFrame({**losses, "usage": ratios, "usage_mean": ratios})
        draw_usage(levels, stability, tmp_path / "usage.png")
    flat, steep = (figure.axes[1] for figure in drawn)
    assert flat.get_ylim() == (0.99, 1.05)
    assert flat.yaxis.get_major_formatter().get_offset() == ""
    assert "1.00" in [label.get_text() for label in flat.get_yticklabels()]
    lowest, highest = steep.get_ylim()
    assert lowest < 0.9
    assert highest > 1.6


def test_the_command_calls_a_usage_near_1_bad(run, labelled, tmp_path, caplog):
    for as_json in ((), ("--json",)):
        caplog.clear()
        code, _, error = run(
            "-q", "usage", "--bundle", labelled.bundle, "--cohort", labelled.cohort, "--split", "train", "--levels", 1,
            "--device", "cpu", "--out", tmp_path / "o", *as_json,
        )  # fmt: skip
        assert code == 0, error
        figure = json.loads((tmp_path / "o" / "usage.json").read_text())["results"]["figures"]["z_sem_usage"]
        assert figure < 1.02
        said = [record.message for record in caplog.records if "does not heed z_sem" in record.message]
        assert len(said) == 1
        assert said[0].startswith(f"z_sem_usage {figure:.3f}: ")


def test_the_command(run, labelled, tmp_path):
    model = ["--bundle", labelled.bundle, "--cohort", labelled.cohort, "--device", "cpu", "--levels", 1]
    code, printed, error = run("usage", *model, "--split", "train", "--out", tmp_path / "o")
    assert code == 0, error
    assert "times that with the own" in printed.splitlines()[0]
    num_train = (pd.read_csv(labelled.cohort)["split"] == "train").sum()
    assert printed.splitlines()[0].endswith(f"({num_train} cases)")
    assert "dimensions active" in printed
    code, printed, _ = run("--quiet", "usage", *model, "--split", "train", "--out", tmp_path / "o", "--json")
    assert json.loads(printed)["dimensions"]["dims"] == 8
    assert json.loads(printed)["num_cases"] == num_train
    assert "Example: monai-diffae usage" in " ".join(run("usage", "--help")[1].split())


def test_unreadable_scans_are_listed_beside_the_list_of_embed(run, labelled, tmp_path):
    cohort = pd.read_csv(labelled.cohort)
    cohort["image"] = [str(labelled.cohort.parent / image) for image in cohort["image"]]
    (tmp_path / "bad.png").write_bytes(b"no scan")
    cohort.loc[0, "image"] = str(tmp_path / "bad.png")
    cohort.assign(split="val").to_csv(tmp_path / "cohort.csv", index=False)
    write_failures(tmp_path / "failures.csv", [Failure("c", "c.nii", "c.nii: empty")])
    options = ["--bundle", labelled.bundle, "--cohort", tmp_path / "cohort.csv", "--device", "cpu", "--levels", 1]
    code, _, error = run("-q", "usage", *options, "--out", tmp_path)
    assert (code, error.splitlines()[-1]) == (3, "1 of 12 cases failed: see usage_failures.csv")
    assert pd.read_csv(tmp_path / "failures.csv")["case_id"].tolist() == ["c"]
    assert pd.read_csv(tmp_path / "usage_failures.csv")["file"].tolist() == ["bad.png"]
