"""The program: help, exit codes, one-line errors, and every command once with small data."""

import json
import re
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest

from monai_diffae import cli
from monai_diffae.apps.commands import COMMANDS

NAMES = [command.name for command in COMMANDS]


def test_the_program_is_built_at_once_and_loads_nothing_heavy():
    code = """
import sys
from monai_diffae.cli import build_app
build_app()
print([name for name in ("torch", "monai", "pandas", "pydantic") if name in sys.modules])
"""
    start = time.monotonic()
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
    assert time.monotonic() - start < 5  # 0.4 s on a free machine


def test_the_help_lists_every_command_in_its_group_and_the_exit_codes(run):
    code, printed, _ = run("--help")
    assert code == 0
    for command in COMMANDS:
        assert f"─ {command.group} ─" in printed
        assert re.search(rf"^│ {command.name} ", printed, flags=re.M), command.name
    assert "3 done but some cases failed (failures.csv)" in " ".join(printed.split())


@pytest.mark.parametrize("command", NAMES)
def test_help_of_each_command_shows_its_arguments_and_an_example(run, command):
    code, printed, _ = run(command, "--help")
    assert code == 0
    assert f"Usage: monai-diffae {command} " in printed
    assert f"Example: monai-diffae {command}" in " ".join(printed.split())
    for option in ("--json", "--quiet", "--debug"):
        assert option in printed


def test_version(run):
    assert run("--version")[1].startswith("monai-diffae ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed"], 'Command "embed" parameter --bundle requires an argument.'),
        (["embde"], 'Unknown command "embde"'),
        (["embed", "b", "c", "o", "--nope"], "Unknown option: --nope"),
        (["embed", "b", "c", "o", "--batch-size", "many"], "'many' is not a whole number"),
        (["embed", "b", "c", "o", "--pool", "most"], '"most"'),
        (["embed", "b", "c", "o", "--batch-size", "0"], "--batch-size: 0 is below 1"),
        (["embed", "b", "c", "o", "--overlap", "1"], "--overlap: 1.0 is not below 1"),
        (["train", "b", "c", "--overrides", "x"], "is not of the form name=value"),
        (["reconstruct", "b", "c", "o", "--solver", "magic"], '"magic"'),
        (["reconstruct", "b", "c", "o", "--split", "all"], '"all"'),
        (["evaluate", "o", "--bundle", "b", "--cohort", "c", "--decoder", "best"], 'Choose from: "exact", "fast"'),
        (["reconstruct", "b", "c", "o", "--limit", "2.7"], "--limit: '2.7' is not a whole number"),
        (["reconstruct", "b", "c", "o", "--limit", "0x10"], "--limit: '0x10' is not a whole number"),
        (["reconstruct", "b", "c", "o", "--cases"], "--cases requires at least 1"),
        (["reconstruct", "b", "c", "o", "--seed", "-1"], "--seed: -1 is below 0"),
        (["reconstruct", "b", "c", "o", "--seed", str(2**32)], f"--seed: {2**32} is not below {2**32}"),
        (["reconstruct", "b", "c", "o", "--overrides", "seed=1", "seed=2"], "'seed' is given twice"),
        (["train", "none", "c"], "none: there is no configs/train.json; make a bundle with monai-diffae init"),
        (["info", "none"], "none: there is no models/model.pt; train the bundle first"),
    ],
)
def test_usage_errors_end_with_2_and_one_line(run, words, message):
    code, printed, error = run(*words)
    assert (code, printed) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1, error


def test_an_option_with_several_values_can_be_followed_by_another_one():
    words = ["evaluate", "o", "--bundle", "a", "b", "--decoder", "exact", "fast", "--steps", "5", "9", "--cohort", "c"]
    given = cli.parse(cli.build_app(), words)[1].arguments
    assert [str(bundle) for bundle in given["bundle"]] == ["a", "b"]
    assert given["conditions"].decoders == ["exact", "fast"]
    assert given["conditions"].steps == [5, 9]


def test_an_unknown_solver_is_answered_with_those_that_there_are(run):
    from monai_diffae.diffusion import SOLVERS, SPACINGS

    for option, choices in (("solver", SOLVERS), ("spacing", SPACINGS), ("inversion", ("implicit", "ddim"))):
        _, _, error = run("reconstruct", "b", "c", "o", f"--{option}", "magic")
        assert {*choices} <= set(re.findall(r"\w+", error)), error
        assert {*choices} <= set(re.findall(r"\w+", run("reconstruct", "--help")[1]))


def test_a_network_that_cannot_decode_in_so_many_steps_is_one_line(run, tiny_bundle, tmp_path):
    model = [tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "no", "--device", "cpu"]
    code, _, error = run("--quiet", "reconstruct", *model, "--steps", 5000)
    assert (code, len(error.splitlines())) == (2, 1)
    assert not (tmp_path / "no").exists()


def test_init_embed_probe_info_and_reconstruct_in_turn(run, tiny_bundle, tmp_path, caplog):
    assert run("init", tmp_path / "new")[0] == 0
    assert (tmp_path / "new" / "configs" / "train.json").is_file()
    model = [tiny_bundle.directory, tiny_bundle.cohort]
    code, printed, error = run("--quiet", "embed", *model, tmp_path / "e", "--device", "cpu")
    assert (code, printed) == (0, f"{tmp_path / 'e' / 'embeddings.parquet'}\n"), error
    code, printed, _ = run("probe", tmp_path / "e" / "embeddings.parquet", "--targets", "tilt", "--json")
    assert json.loads(printed)["rows"][0]["target"] == "tilt"
    code, printed, _ = run("info", tiny_bundle.directory, "--json")
    assert json.loads(printed)["image_size"] == [16, 16]
    options = ["--device", "cpu", "--steps", 2, "--limit", 2]
    code, printed, error = run("reconstruct", *model, "--out", tmp_path / "r", *options)
    assert code == 0, error
    assert "mse_x_T" in printed
    assert printed.endswith(f"{tmp_path / 'r'}\n")
    with caplog.at_level("INFO", "monai_diffae"):
        assert run("reconstruct", *model, "--out", tmp_path / "r", *options)[:2] == (0, printed)
    assert "reconstructions.csv is complete; nothing to do" in caplog.text


def test_every_command_that_makes_images_in_turn(run, tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    quick = ["--device", "cpu", "--steps", 2]
    model = [bundle, tiny_bundle.cohort]
    first, second = pd.read_csv(tiny_bundle.cohort)["id"][:2]
    embeddings, direction = tmp_path / "e" / "embeddings.parquet", tmp_path / "tilt.json"

    def succeeds(*arguments):
        code, printed, error = run("--quiet", *arguments)
        assert code == 0, error
        return printed

    succeeds("embed", *model, tmp_path / "e", "--device", "cpu")
    fit = ["fit-direction", embeddings, direction, "--target", "tilt"]
    assert succeeds(*fit).splitlines()[-1] == str(direction)
    assert json.loads(succeeds(*fit, "--json"))["kind"] == "continuous"
    graded = ["grade", embeddings, tmp_path / "g.csv", "--direction", direction]
    assert re.search(r"train: r2 .* \(95% interval .*, \d cases\)", succeeds(*graded))
    assert json.loads(succeeds(*graded, "--json"))["train"]["metric"] == "r2"
    edited = ["--direction", direction, "--strengths", "-1,1", "--limit", 2, "--watch", direction, "--along", "weight"]
    assert "of 2 cases" in succeeds("edit", *model, tmp_path / "edit", *quick, *edited)
    assert "drift_tilt" in pd.read_csv(tmp_path / "edit" / "edits.csv")
    succeeds("interpolate", *model, tmp_path / "morph", *quick, "--start", first, "--end", second, "--num-images", 3)
    assert len(list((tmp_path / "morph" / "images").iterdir())) == 3
    varied = succeeds("vary", *model, tmp_path / "vary", *quick, "--case", first, "--num-images", 2)
    assert "mean_std" in varied
    traversed = [bundle, embeddings, tmp_path / "walk", "--num-components", 1, "--num-noises", 1, *quick]
    assert "component 1 explained" in succeeds("traverse", *traversed, "--strengths", "-1,1")
    assert run("generate", bundle, tmp_path / "s", *quick)[0] == 2  # there is no latent model yet
    latent = [
        "max_epochs=1", "batch_size=4", "mlflow=false", "latent_network_def#num_layers=2",
        "latent_network_def#hidden_channels=16", "train#dataset#draws=1",
    ]  # fmt: skip
    trained = succeeds("train-latent", bundle, "--embeddings", embeddings, "--device", "cpu", "--overrides", *latent)
    assert trained.splitlines() == [str(bundle), f"next: monai-diffae generate {bundle} generated"]
    generated = ["--num-images", 2, "--image-format", "nii.gz", *quick]
    assert succeeds("generate", bundle, tmp_path / "s", *generated) == f"{tmp_path / 's'}\n"
    assert len(list((tmp_path / "s" / "images").glob("*.nii.gz"))) == 2
    code, _, error = run("generate", bundle, tmp_path / "few", *generated, "--direction", direction)
    assert (code, error.splitlines()[-1][:32]) == (2, "error: --direction: 'tilt' is a ")
    code, printed, error = run("traverse", *traversed[:2], tmp_path / "no", "--strengths", "1,b")
    assert (code, printed, len(error.splitlines())) == (2, "", 1)
    assert "--strengths" in error


def test_the_official_decoding_can_be_asked_for(run, tiny_bundle, tmp_path):
    model = ["reconstruct", tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "official", "--device", "cpu"]
    official = ["--solver", "ddim", "--inversion", "ddim", "--spacing", "leading", "--steps", 2, "--invert-steps", 4]
    code, _, error = run(*model, "--limit", 1, *official)
    assert code == 0, error
    record = json.loads((tmp_path / "official" / "reconstructions.json").read_text())["made_from"]
    asked = {"solver": "ddim", "inversion": "ddim", "spacing": "leading", "steps": 2, "invert_steps": 4}
    assert asked.items() <= record.items()


def test_some_failed_cases_end_with_3_none_left_with_4(run, tiny_bundle, tmp_path):
    table = pd.read_csv(tiny_bundle.cohort).iloc[:4]
    (tmp_path / "bad.nii").write_bytes(b"bad")
    good = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    for images, expected in (([*good[:3], "bad.nii"], 3), (["bad.nii"] * 4, 4)):
        cohort = tmp_path / f"{expected}.csv"
        pd.DataFrame({"file": images, "id": table["id"]}).to_csv(cohort, index=False)
        out = tmp_path / f"out{expected}"
        code, _, error = run("embed", tiny_bundle.directory, cohort, out, "--device", "cpu", "--columns", "image=file")
        assert code == expected
        assert "Traceback" not in error
    assert "bad.nii" in (tmp_path / "out3" / "failures.csv").read_text()


def test_train_ends_with_3_if_more_than_a_tenth_of_the_scans_cannot_be_used(run, tiny_bundle, tiny_settings, tmp_path):
    bundle = shutil.copytree(
        tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache", "models")
    )
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    (tmp_path / "bad.nii").write_bytes(b"bad")
    table.loc[table.index[table["split"] == "train"][0], "image"] = "bad.nii"
    table.to_csv(tmp_path / "cohort.csv", index=False)
    settings = {key: value for key, value in tiny_settings.items() if key not in ("device", "batch_size")}
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    options = ["--device", "cpu", "--batch-size", 3, "--seed", 1, "--workers", 0, "--overrides", *overrides]
    code, printed, error = run("--quiet", "train", bundle, tmp_path / "cohort.csv", *options)
    assert code == 3, error
    data = tmp_path / "cohort.csv"
    assert printed.splitlines() == [str(bundle), f"next: monai-diffae embed {bundle} {data} results"]
    assert error.splitlines()[-1] == "1 of 9 cases could not be used: see failures.csv"
    assert "bad.nii" in (bundle / "failures.csv").read_text()


def test_a_device_that_is_not_there_ends_with_6(run, tiny_bundle, tmp_path):
    code, _, error = run("embed", tiny_bundle.directory, tiny_bundle.cohort, tmp_path, "--device", "cuda:99")
    assert code == 6
    assert error.startswith("error: --device: 'cuda:99'")


def test_sample_data(run, tmp_path):
    code, printed, _ = run("sample-data", tmp_path / "v", "--num-patients", 3, "--size", 16)
    assert (code, printed) == (0, f"{tmp_path / 'v' / 'cohort.csv'}\n")
    assert len(pd.read_csv(tmp_path / "v" / "cohort.csv")) == 3
    code, _, error = run("sample-data", tmp_path / "m", "--medmnist", "x", "--num-patients", 3)
    assert (code, error) == (
        2, "error: --num-patients: applies to the virtual cohort; omit --num-patients or medmnist\n"
    )  # fmt: skip


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["monai-diffae", "--debug", "info", str(tmp_path)])
    with pytest.raises(ValueError, match=r"no models/model\.pt"):
        cli.main()


# with and without a buffer
@pytest.mark.parametrize("options", [[], pytest.param(["-u"], marks=pytest.mark.slow)])
def test_a_reader_that_stops_reading_is_no_error(tiny_bundle, options):
    program = [sys.executable, *options, "-m", "monai_diffae", "info", str(tiny_bundle.directory)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (0, "")


def test_a_bug_ends_with_1_and_says_how_to_see_it(run, monkeypatch, tmp_path):
    from monai_diffae.bundle import folders

    def fail(*arguments):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(folders, "init_bundle", fail)
    code, _, error = run("init", tmp_path / "new")
    assert (code, error) == (1, "error: ZeroDivisionError: a bug\nthis is a bug; --debug shows where\n")


@pytest.mark.parametrize(("command", "code"), [("embed", 2), ("train", 6)])
def test_a_file_where_a_folder_should_be_is_one_line(tiny_bundle, start_program, tmp_path, command, code):
    (tmp_path / "file").write_text("mine")
    arguments = [tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "file", "--device", "cpu"]
    process = start_program("-q", command, *arguments, output=tmp_path / "printed")
    process.join(120)
    printed = (tmp_path / "printed").read_text()
    assert process.exitcode == code, printed
    assert len(printed.splitlines()) == 1, printed
    assert str(tmp_path) not in printed
    assert (tmp_path / "file").read_text() == "mine"
