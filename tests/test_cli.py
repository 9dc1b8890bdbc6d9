"""The program: help, exit codes, one-line errors, and every command that makes images once with small data."""

import builtins
import json
import os
import pickle
import re
import subprocess
import sys

import pytest

from monai_diffae import __version__, cli
from monai_diffae.apps.commands import COMMANDS
from monai_diffae.apps.settings import Training
from monai_diffae.lazy import on_first_use


def test_the_program_as_a_process_answers_without_loading_torch_and_ends_with_the_exit_code():
    code = """
import sys
from monai_diffae.cli import build_app, main
build_app()
heavy = {"torch", "monai", "mlflow", "pandas", "sklearn", "scipy", "matplotlib", "pydantic"} & sys.modules.keys()
assert not heavy, heavy
sys.argv = ["monai-diffae", "--version"]
main()
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == f"monai-diffae {__version__}\n"
    wrong = subprocess.run([sys.executable, "-m", "monai_diffae", "embde"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout, len(wrong.stderr.splitlines())) == (2, "", 1)


def test_threads_wait_asleep_and_are_as_many_as_the_user_says_unless_the_user_has_set_how(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # undone after the test
        monkeypatch.delenv(name)
    cli._set_up_torch(None)
    assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ.pop("GOMP_SPINCOUNT") == "1000"
    cli._set_up_torch(2)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    cli._set_up_torch(None)
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.slow
def test_a_reader_that_stops_reading_is_no_error(tiny_bundle):
    program = [sys.executable, "-m", "monai_diffae", "info", str(tiny_bundle.directory)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (0, "")


@pytest.mark.slow
def test_commands_that_build_no_network_load_neither_torch_nor_monai_nor_mlflow(labelled, class_folders, tmp_path):
    code = """
import json, sys
from contextlib import suppress
from monai_diffae.cli import build_app
from monai_diffae.errors import CohortError, ConfigError
program = build_app()
for arguments in json.loads(sys.argv[1]):
    with suppress(CohortError, ConfigError):  # "nothing" is no label, so these three end when they have read the table
        assert program.meta(arguments) == 0 and "nothing" not in arguments
    writes_weights = "hippocampus" in arguments  # as MONAI's tools read them, which takes torch
    heavy = {"monai", "mlflow", *([] if writes_weights else ["torch"])} & sys.modules.keys()
    assert not heavy, (arguments, heavy)
"""
    table, out = str(labelled.embeddings), tmp_path.joinpath
    commands = [
        ["init", out("new")], ["list-scans", class_folders, out("scans.csv")],
        ["fit-direction", table, out("sex.json"), "--target", "nothing"],
        ["neighbors", table, out("near"), "--captions", "nothing"], ["probe", table, out("p"), "--targets", "nothing"],
        ["init", out("trained"), "--bundle", "hippocampus"],
    ]  # fmt: skip
    arguments = json.dumps([[str(word) for word in words] for words in commands])
    done = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(out(name).exists() for name in ("new", "scans.csv", "trained"))


def test_help_shows_every_command_in_its_group_and_the_exit_codes(run):
    code, printed, _ = run("--help")
    assert code == 0
    assert "3 done but some cases failed (failures.csv)" in " ".join(printed.split())
    for command in COMMANDS:
        assert f"─ {command.group} ─" in printed
        assert re.search(rf"^│ {command.name} ", printed, flags=re.M), command.name


def test_an_option_with_several_values_can_be_followed_by_another_one():
    words = ["evaluate", "o", "--bundle", "a", "b", "--decoder", "exact", "fast", "--steps", "5", "9", "--cohort", "c"]
    given = cli.parse(cli.build_app(), words)[1].arguments
    assert [str(bundle) for bundle in given["bundle"]] == ["a", "b"]
    assert given["conditions"].decoders == ["exact", "fast"]
    assert given["conditions"].steps == [5, 9]
    writing = cli.parse(cli.build_app(), ["probe", "table.csv", "--dpi", "300", "--overwrite"])[1].arguments["writing"]
    assert (writing.figure_format, writing.dpi, writing.overwrite) == ("png", 300, True)


def test_a_key_of_the_configuration_is_an_option():
    words = ["train", "b", "scans.csv", "--max-epochs", "5", "--columns#head-size=x", "--image_size", "[8,8]"]
    arguments = cli.parse(cli.build_app(), words)[1].arguments
    keys = {"max_epochs": 5, "columns#head-size": "x", "image_size": [8, 8]}
    assert Training().with_keys(arguments["keys"]).overrides == keys


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--network_def.encoder.z_grid 2", "separated by #, not by a dot"),
        ("--max_epochs 5 6", "'5 6' are several values"),
        ("--z-channels 4 --z_channels 8", "z_channels: is given twice"),
        ("--minute 5", "did you mean --minutes, or 'max_minutes'?"),
    ],
)
def test_a_key_that_is_not_clear_is_refused(run, small_cohort, tmp_path, words, message):
    code, _, errors = run("train", tmp_path / "bundle", small_cohort, *words.split())
    assert code == 2
    assert message in errors


def test_a_former_name_of_a_command_ends_in_a_line_with_the_new_one(run):
    assert run("interpolate", "a", "b")[::2] == (2, "error: interpolate: is now monai-diffae decode --show path\n")


def test_a_block_of_imports_inside_another_one_ends_with_pythons_own_import():
    own = builtins.__import__
    with on_first_use:
        with on_first_use:
            import torch
        import numpy as np
    assert builtins.__import__ is own
    assert pickle.loads(pickle.dumps(torch)).__name__ == "torch"
    assert np.ones(1)


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match=r"no models/model\.safetensors"):
        cli.main(["--debug", "info", str(tmp_path)])
