"""The Dockerfile, instruction by instruction. No image is built here: that needs Docker and a network."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def instructions():
    """The pairs (instruction, rest of its line) of the file."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


def of(name):
    return [rest for instruction, rest in instructions() if instruction == name]


def test_base_and_index_are_arguments_and_a_cpu_is_the_default():
    assert instructions()[0] == ("ARG", "BASE=python:3.11-slim")
    assert of("FROM")[-1] == "${BASE}"
    assert "TORCH_INDEX=" in of("ARG")  # the usual one of pip


def test_the_program_runs_as_a_user_without_rights():
    (user,) = of("USER")
    names = [name for name, _ in instructions()]
    (created,) = [rest for rest in of("RUN") if rest.startswith("useradd")]
    assert created.split()[-1] == user != "root"
    assert "RUN" not in names[names.index("USER") :]
    assert "COPY" not in names[names.index("USER") :]


def test_only_the_sources_are_copied_and_no_data_or_weights_but_the_shipped_ones():
    sources = [part for rest in of("COPY") if not rest.startswith("--from") for part in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in sources)
    first, *patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    assert first == "*"
    allowed = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    shipped = "bundles/*/models/*.safetensors"
    assert {*sources, shipped} == allowed
    assert patterns.index(f"!{shipped}") > patterns.index("**/*.safetensors")  # the last pattern that fits counts
    assert {"**/*.pt", "**/*.safetensors", "**/*.parquet", "**/*.db"} <= set(patterns)


def test_the_wheel_is_built_from_what_is_copied():
    """Everything that pyproject.toml needs to build the wheel is in the first stage."""
    text = (ROOT / "pyproject.toml").read_text()
    included = re.findall(r'^(\w+) = "monai_diffae/\w+"$', text, flags=re.M)
    needed = {
        "pyproject.toml",
        "monai_diffae",
        *included,
        *re.findall(r'^readme = "(.*)"', text, flags=re.M),
        "LICENSE",
    }
    assert {"bundles", "configs"} <= needed
    assert needed == {part for rest in of("COPY") if not rest.startswith("--from") for part in rest.split()[:-1]}


@pytest.mark.parametrize("command", of("RUN"))
def test_commands_can_be_read_by_the_shell(command):
    subprocess.run(["sh", "-n", "-c", command], check=True)
    for words in (shlex.split(part) for part in command.split("||")):
        assert words[0] in ("python", "useradd")
        if words[:3] == ["python", "-m", "pip"]:
            known = subprocess.run(
                [sys.executable, "-m", "pip", words[3], "--help"], capture_output=True, text=True, check=True
            ).stdout
            assert [word for word in words if word.startswith("--") and f"{word} " not in known] == []


def test_the_entry_point_is_the_program_and_shows_its_help():
    (entry,), (arguments,) = (map(json.loads, of(name)) for name in ("ENTRYPOINT", "CMD"))
    scripts = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[1].split("[")[0]
    assert f"{entry[0]} = " in scripts
    shown = subprocess.run(
        [sys.executable, "-m", "monai_diffae", *arguments], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "embed" in shown.stdout
