"""Goal R25: every exit code that docs/words.md lists, by a real run of the program.

7 is tested in tests/bundles/test_resume.py; 130 and 143, after a signal, in tests/robustness/test_kills.py.
"""

import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_bundles import copy_tiny, rewrite

from monai_diffae import errors
from monai_diffae.apps.result import Result
from monai_diffae.errors import DiffAEError

pytestmark = pytest.mark.goal(id="R25")

DOCS = Path(__file__).parents[2] / "docs" / "words.md"


@pytest.fixture
def pictures(tmp_path):
    """Three pictures of noise."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 255, (16, 16), np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def embed(run, tiny_bundle, pictures, tmp_path):
    """Embeds the pictures on a device; the exit code and the lines on standard error."""

    def call(device="cpu", bundle=tiny_bundle.directory):
        code, _, errors = run("embed", bundle, pictures, tmp_path / "z", "--device", device)
        return code, errors.strip().splitlines()

    return call


def test_0_complete(run, embed):
    assert embed()[0] == 0
    assert embed()[0] == 0  # complete already
    assert run("--help")[0] == run("--version")[0] == 0


def test_1_a_bug(run, monkeypatch, pictures):
    def broken(self):
        raise KeyError("lr")

    monkeypatch.setattr(Result, "lines", broken)
    code, _, errors = run("verify", pictures, "--headers")
    assert (code, errors.splitlines()[-1]) == (1, "this is a bug; --debug shows where")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("embed", 'Command "embed" parameter --bundle requires an argument.'),
        ("embed BUNDLE PICTURES out --nope", "Unknown option: --nope"),
        ("embed BUNDLE PICTURES out --batch-size many", "'many' is not a whole number"),
        ("embed BUNDLE PICTURES out --batch-size 0", "--batch-size: 0 is below 1"),
        ("reconstruct BUNDLE PICTURES out --overrides seed=1 seed=2", "'seed' is given twice"),
        ("embed out PICTURES z", "error: out: there is no models/model.safetensors"),  # not --out
        ("info wrong/name", "error: wrong/name: there is no models/model.safetensors"),
        ("pull wrong/name.zip out", "error: wrong/name.zip: there is no such file"),
    ],
)
def test_2_wrong_arguments(run, tiny_bundle, pictures, monkeypatch, tmp_path, line, message):
    monkeypatch.chdir(tmp_path)
    places = {"PICTURES": pictures, "BUNDLE": tiny_bundle.directory}
    code, printed, errors = run(*(places.get(word, word) for word in line.split()))
    assert (code, printed, len(errors.splitlines())) == (2, "", 1), errors
    assert errors.startswith("error: ")
    assert message in errors


def test_3_some_cases_failed(run, embed, pictures, tmp_path):
    (pictures / "1.png").write_bytes(b"<html>")
    assert embed()[0] == 3
    assert len(pd.read_parquet(tmp_path / "z" / "embeddings.parquet")) == 2
    assert run("verify", pictures)[0] == 3


def test_4_no_usable_case(run, embed, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run("verify", tmp_path / "empty")[0] == 4
    code, _, errors = run("verify", tmp_path / "wrong" / "name")
    assert (code, errors.partition(": there is no such folder")[0]) == (4, f"error: {tmp_path / 'wrong' / 'name'}")
    for file in pictures.iterdir():
        file.write_bytes(b"")
    assert embed()[0] == 4
    (tmp_path / "scans.csv").write_text("id,image,patient,split\na,0.png,p,train\nb,1.png,p,test\n")
    assert run("list-scans", tmp_path / "scans.csv", tmp_path / "out.csv")[0] == 4


def test_5_unsafe_input(run, embed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = copy_tiny(tmp_path / "hostile", "2d")
    rewrite(bundle, lambda weights: weights, inferer={"_target_": "os.mkdir", "path": "proof"})
    assert embed(bundle=bundle)[0] == 5
    code, shown, _ = run("info", bundle)
    assert (code, "own code: os.mkdir\nnothing was run" in shown) == (0, True)
    assert not (tmp_path / "proof").exists()


@pytest.mark.goal(id="R17")
def test_6_the_machine(embed, fail_to_save):
    code, (line,) = embed("cuda:99")
    assert (code, "is not usable on this machine" in line) == (6, True)

    fail_to_save(OSError(28, "No space left on device"))
    assert embed()[0] == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file of Linux")
def test_a_full_or_closed_standard_output_is_no_bug(run):
    with open("/dev/full", "w") as full, redirect_stdout(full):
        code, _, errors = run("--version")
    assert (code, len(errors.splitlines())) == (6, 1)
    with redirect_stdout(None):
        assert run("--version")[0] == 0


def worker_error():
    error = RuntimeError("a worker has exited, too")
    error.__context__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), worker_error()])
def test_130_ctrl_c(embed, fail_to_save, error):
    fail_to_save(error)
    code, lines = embed()
    assert (code, lines[-1]) == (130, "interrupted; what is complete is kept: run the same command again")


def test_every_code_is_documented():
    codes = re.findall(r"^\| ([\d, ]+) \|", DOCS.read_text(encoding="utf-8"), flags=re.M)
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, DiffAEError)]
    expected = {0, 1, 3, 130, 143} | {each.exit_code for each in classes}
    assert sorted(expected) == [int(code) for line in codes for code in line.split(",")]
