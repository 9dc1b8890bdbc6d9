"""Goal R25: every exit code that docs/words.md lists, by a real run of the program.

130 and 143 are those of processes that get a signal: tests/bundles/test_signals.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from monai_diffae.apps.training.verify import VerifyResult

pytestmark = pytest.mark.goal(id="R25")

DOCS = Path(__file__).parents[2] / "docs" / "words.md"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of noise."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 255, (16, 16), np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def damaged(pictures: Path) -> Path:
    """The same, one of them damaged."""
    (pictures / "1.png").write_bytes(b"<html>")
    return pictures


@pytest.fixture
def hostile(tiny_bundle: Any, tmp_path: Path) -> Path:
    """A bundle whose weights would run code."""

    class Touch:
        def __reduce__(self) -> tuple[Any, tuple[Path]]:
            return Path.touch, (tmp_path / "proof",)

    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "hostile", ignore=shutil.ignore_patterns("cache"))
    torch.save({"network": Touch()}, bundle / "models" / "model.pt")
    return bundle


def test_0_complete(run: Any, tiny_bundle: Any, pictures: Path, tmp_path: Path) -> None:
    arguments = ("embed", tiny_bundle.directory, pictures, tmp_path / "z", "--device", "cpu")
    assert run(*arguments)[0] == 0
    assert run(*arguments)[0] == 0  # complete already
    assert run("--help")[0] == run("--version")[0] == 0


def test_1_a_bug(run: Any, monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    def broken(self: VerifyResult) -> None:
        raise KeyError("lr")

    monkeypatch.setattr(VerifyResult, "lines", broken)
    code, _, errors = run("verify", pictures, "--headers")
    assert (code, errors.splitlines()[-1]) == (1, "this is a bug; --debug shows where")


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "PICTURES", "--no-such-option"),
        ("no-such-command",),
        ("embed", "BUNDLE", "PICTURES", "out", "--batch-size", "0"),
        ("embed", "BUNDLE", "PICTURES", "out.xlsx"),
        ("embed", "PICTURES", "PICTURES", "out"),  # no bundle
    ],
)
def test_2_wrong_arguments(
    run: Any,
    tiny_bundle: Any,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"PICTURES": pictures, "BUNDLE": tiny_bundle.directory}
    code, _, errors = run(*(places.get(word, word) for word in arguments))
    assert (code, len(errors.strip().splitlines())) == (2, 1)


def test_3_some_cases_failed(run: Any, tiny_bundle: Any, damaged: Path, tmp_path: Path) -> None:
    assert run("embed", tiny_bundle.directory, damaged, tmp_path / "z", "--device", "cpu")[0] == 3
    assert len(pd.read_parquet(tmp_path / "z" / "embeddings.parquet")) == 2
    assert run("verify", damaged)[0] == 3


def test_4_no_usable_case(run: Any, tiny_bundle: Any, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run("verify", tmp_path / "empty")[0] == 4
    for file in pictures.iterdir():
        file.write_bytes(b"")
    assert run("embed", tiny_bundle.directory, pictures, tmp_path / "z", "--device", "cpu")[0] == 4
    (tmp_path / "scans.csv").write_text("id,image,patient,split\na,0.png,p,train\nb,1.png,p,test\n")
    assert run("list-scans", tmp_path / "scans.csv", tmp_path / "out.csv")[0] == 4


def test_5_unsafe_input(run: Any, hostile: Path, pictures: Path, tmp_path: Path) -> None:
    assert run("embed", hostile, pictures, tmp_path / "z", "--device", "cpu")[0] == 5
    assert run("info", hostile)[0] == 5
    assert not (tmp_path / "proof").exists()


def test_6_the_machine(run: Any, tiny_bundle: Any, pictures: Path, tmp_path: Path) -> None:
    code, _, errors = run("embed", tiny_bundle.directory, pictures, tmp_path / "z", "--device", "cuda:99")
    assert (code, "is not usable on this machine" in errors) == (6, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", _full_disk)
        code, _, errors = run("embed", tiny_bundle.directory, pictures, tmp_path / "z", "--device", "cpu")
    assert (code, len(errors.strip().splitlines()[-1:])) == (6, 1)


def _full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_a_process_ends_with_the_code_too(pictures: Path) -> None:
    program = [sys.executable, "-m", "monai_diffae", "verify", str(pictures), "--headers"]
    assert subprocess.run(program, capture_output=True, check=False).returncode == 0
    (pictures / "0.png").write_bytes(b"")
    assert subprocess.run(program, capture_output=True, check=False).returncode == 3


def test_every_code_is_documented() -> None:
    codes = re.findall(r"^\| ([\d, ]+) \|", DOCS.read_text(encoding="utf-8"), flags=re.M)
    assert {0, 1, 2, 3, 4, 5, 6, 130, 143} <= {int(code) for line in codes for code in line.split(",")}
