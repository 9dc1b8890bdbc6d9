import json
import re
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest

from monai_diffae import cli

COMMANDS = [
    "init", "plan", "train", "embed", "reconstruct", "probe", "samples", "demo", "import-official", "info",
    "train-latent", "sample", "interpolate", "vary", "walk", "fit-direction", "edit", "grade",
    "neighbors", "usage",
]  # fmt: skip


def test_help_answers_at_once_and_imports_nothing_heavy():
    start = time.monotonic()
    code = (
        "import sys; from monai_diffae import cli; print([m for m in ('torch', 'monai', 'pandas') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
    assert time.monotonic() - start < 5  # 0.4 s on a free machine


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example(run, command):
    code, printed, _ = run(command, "--help")
    assert code == 0
    assert f"Example: monai-diffae {command}" in " ".join(printed.split())


def test_version(run):
    assert run("--version")[1].startswith("monai-diffae ")


def test_usage_errors_end_with_2(run, tmp_path):
    assert run("embed")[0] == 2
    code, _, error = run("embed", "--bundle", tmp_path / "none", "--cohort", tmp_path, "--out", tmp_path)
    assert (code, error) == (2, "error: none: there is no models/model.pt; train the bundle first\n")
    assert run("train", "--bundle", tmp_path, "--cohort", tmp_path, "--set", "x")[0] == 2


def test_init_embed_and_probe_in_turn(run, tiny_bundle, tmp_path):
    assert run("init", tmp_path / "new")[0] == 0
    assert (tmp_path / "new" / "configs" / "train.json").is_file()
    model = ["--bundle", tiny_bundle.directory, "--cohort", tiny_bundle.cohort, "--device", "cpu"]
    code, printed, _ = run("--quiet", "embed", *model, "--out", tmp_path / "e")
    assert (code, printed) == (0, f"{tmp_path / 'e' / 'embeddings.parquet'}\n")
    code, printed, _ = run("probe", tmp_path / "e" / "embeddings.parquet", "--target", "tilt", "--json")
    assert json.loads(printed)[0]["target"] == "tilt"
    code, printed, _ = run("info", tiny_bundle.directory, "--json")
    assert json.loads(printed)["image_size"] == [16, 16]
    code, printed, _ = run("reconstruct", *model, "--out", tmp_path / "r", "--steps", 2, "--limit", 2)
    assert code == 0
    assert "mse_x_T" in printed


def test_every_command_that_makes_images_in_turn(run, tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    of_bundle, quick = ["--bundle", bundle, "--device", "cpu"], ["--steps", 2]
    model = [*of_bundle, "--cohort", tiny_bundle.cohort]
    first, second = pd.read_csv(tiny_bundle.cohort)["id"][:2]
    embeddings, direction = tmp_path / "e" / "embeddings.parquet", tmp_path / "tilt.json"

    def succeeds(*arguments):
        code, printed, error = run("--quiet", *arguments)
        assert code == 0, error
        return printed

    succeeds("embed", *model, "--out", tmp_path / "e")
    fit = ["fit-direction", "--embeddings", embeddings, "--target", "tilt", "--out", direction]
    assert succeeds(*fit).splitlines()[-1] == str(direction)
    assert json.loads(succeeds(*fit, "--json"))["kind"] == "continuous"
    graded = ["grade", "--embeddings", embeddings, "--direction", direction, "--out", tmp_path / "g.csv"]
    assert re.search(r"train: r2 .* \(95% interval .*, \d cases\)", succeeds(*graded))
    assert json.loads(succeeds(*graded, "--json"))["train"]["metric"] == "r2"
    edited = ["--direction", direction, "--amounts", "-1,1", "--limit", 2, "--watch", direction, "--along", "weight"]
    assert "of 2 cases" in succeeds("edit", *model, *quick, *edited, "--out", tmp_path / "edit")
    assert "drift_tilt" in pd.read_csv(tmp_path / "edit" / "edits.csv")
    between = ["--from", first, "--to", second, "--n", 3]
    succeeds("interpolate", *model, *quick, *between, "--out", tmp_path / "between")
    assert len(list((tmp_path / "between" / "images").iterdir())) == 3
    assert "mean_std" in succeeds("vary", *model, *quick, "--case", first, "--n", 2, "--out", tmp_path / "vary")
    walked = ["--embeddings", embeddings, "--components", 1, "--amounts", "-1,1", "--noises", 1]
    assert "component 1 explained" in succeeds("walk", *of_bundle, *quick, *walked, "--out", tmp_path / "walk")
    latent = {
        "max_epochs": 1, "batch_size": 4, "mlflow": "false", "latent_network_def#num_layers": 2,
        "latent_network_def#hidden_channels": 16, "train#dataset#draws": 1,
    }  # fmt: skip
    settings = [word for key, value in latent.items() for word in ("--set", f"{key}={value}")]
    assert run("sample", *of_bundle, "--out", tmp_path / "s")[0] == 2
    assert succeeds("train-latent", *of_bundle, "--embeddings", embeddings, *settings) == f"{bundle}\n"
    sampled = ["sample", *of_bundle, *quick, "--n", 2, "--format", "nii.gz", "--out", tmp_path / "s"]
    assert succeeds(*sampled) == f"{tmp_path / 's'}\n"
    assert len(list((tmp_path / "s" / "images").glob("*.nii.gz"))) == 2
    code, _, error = run(*sampled[:-1], tmp_path / "few", "--direction", direction)
    assert (code, error.splitlines()[-1][:30]) == (2, "error: direction: 'tilt' is a ")
    code, _, error = run("walk", *of_bundle, *walked[:4], "--amounts", "1,b", "--out", tmp_path / "no")
    assert (code, error) == (2, "error: --amounts: '1,b' is not numbers with commas between, such as -2,0,2\n")


def test_reconstruct_takes_a_solver_and_names_those_that_there_are(run, tiny_bundle, tmp_path):
    from monai_diffae.diffusion import SOLVERS, SPACINGS

    model = ["reconstruct", "--bundle", tiny_bundle.directory, "--cohort", tiny_bundle.cohort, "--device", "cpu"]
    official = ["--solver", "ddim", "--inversion", "ddim", "--spacing", "leading", "--steps", 2, "--invert-steps", 4]
    code, _, error = run(*model, "--out", tmp_path / "official", "--limit", 1, *official)
    assert code == 0, error
    record = json.loads((tmp_path / "official" / "reconstructions.json").read_text())["made_from"]
    said = {"solver": "ddim", "inversion": "ddim", "spacing": "leading", "steps": 2, "invert_steps": 4}
    assert said.items() <= record.items()
    for option in ("solver", "inversion", "spacing"):
        code, _, error = run(*model, "--out", tmp_path / "no", f"--{option}", "magic")
        assert code == 2
        assert error.splitlines()[-1].startswith(f"error: {option} is 'magic'; choose one of: ")
        assert len(error.splitlines()) == 1, error
    code, _, error = run(*model, "--out", tmp_path / "no", "--steps", 5000)
    assert (code, len(error.splitlines())) == (2, 1)
    assert not (tmp_path / "no").exists()
    words = set(re.findall(r"\w+", run("reconstruct", "--help")[1]))
    assert {*SOLVERS, *SPACINGS, "implicit", "evaluations"} <= words


def test_some_failed_cases_end_with_3_none_left_with_4(run, tiny_bundle, tmp_path):
    table = pd.read_csv(tiny_bundle.cohort).iloc[:4]
    (tmp_path / "bad.nii").write_bytes(b"bad")
    good = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    options = ["--bundle", tiny_bundle.directory, "--device", "cpu", "--column", "image=file", "--cohort"]
    for images, expected in (([*good[:3], "bad.nii"], 3), (["bad.nii"] * 4, 4)):
        cohort = tmp_path / f"{expected}.csv"
        pd.DataFrame({"file": images, "id": table["id"]}).to_csv(cohort, index=False)
        code, _, error = run("embed", *options, cohort, "--out", tmp_path / f"out{expected}")
        assert code == expected
        assert "Traceback" not in error
    assert "bad.nii" in (tmp_path / "out3" / "failures.csv").read_text()


def test_a_device_that_is_not_there_ends_with_6(run, tiny_bundle, tmp_path):
    options = ["--bundle", tiny_bundle.directory, "--cohort", tiny_bundle.cohort, "--out", tmp_path]
    code, _, error = run("embed", *options, "--device", "cuda:99")
    assert code == 6
    assert error.startswith("error: device: 'cuda:99'")


def test_samples(run, tmp_path):
    assert run("samples", tmp_path / "v", "--num-patients", 3, "--size", 16)[0] == 0
    assert len(pd.read_csv(tmp_path / "v" / "cohort.csv")) == 3


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["monai-diffae", "--debug", "info", str(tmp_path)])
    with pytest.raises(ValueError, match=r"no models/model\.pt"):
        cli.main()


@pytest.mark.parametrize(("command", "code"), [("embed", 2), ("train", 6)])
def test_a_file_where_a_folder_should_be_is_one_line(tiny_bundle, tmp_path, command, code):
    (tmp_path / "file").write_text("mine")
    options = ["--bundle", tiny_bundle.directory, "--cohort", tiny_bundle.cohort, "--out", tmp_path / "file"]
    run = subprocess.run(
        [sys.executable, "-m", "monai_diffae.cli", "-q", command, *map(str, options), "--device", "cpu"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == code, run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert str(tmp_path) not in run.stderr
    assert (tmp_path / "file").read_text() == "mine"
