"""What surrounds the package: workflows and what they may do, the security rules, the Dockerfile."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = {file.stem: file.read_text() for file in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}


def jobs(workflow):
    return yaml.safe_load(WORKFLOWS[workflow])["jobs"]


@pytest.mark.goal(id="R29")
def test_actions_are_pinned_by_hash_and_each_is_one_version(record_property):
    used = [line for text in WORKFLOWS.values() for line in re.findall(r"uses: (.+)", text)]
    pinned = [line for line in used if re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line)]
    record_property("figure", f"{len(pinned)} of {len(used)} uses of actions pinned by hash")
    assert pinned == used != []
    assert len({line.partition("@")[0] for line in used}) == len(set(used))


@pytest.mark.goal(id="R29")
def test_only_a_tag_publishes_what_was_built_and_tried_and_needs_no_password():
    release = yaml.safe_load(WORKFLOWS["release"])
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads "on" as true
    needs = {name: job.get("needs") for name, job in jobs("release").items()}
    assert needs == {"build": None, "try": "build", "publish": "try", "attach": "publish"}
    publish = jobs("release")["publish"]
    assert publish["environment"] == "pypi"
    assert all("run" not in step for step in publish["steps"])
    assert "secrets." not in "".join(WORKFLOWS.values())
    assert {yaml.safe_load(text)["permissions"]["contents"] for text in WORKFLOWS.values()} == {"read"}
    may_write = {(name, job): steps["permissions"] for name in WORKFLOWS for job, steps in jobs(name).items()
                 if "permissions" in steps}  # fmt: skip
    assert may_write == {("release", "publish"): {"id-token": "write"}, ("release", "attach"): {"contents": "write"}}


def commands_of(workflow):
    return " ".join(step.get("run", "") for job in jobs(workflow).values() for step in job["steps"])


@pytest.mark.goal(id="R29")
def test_vulnerabilities_are_searched_for_by_ci_and_before_a_release_and_slow_tests_run_every_night():
    assert all(re.search(r"\bmake\b.*\baudit\b", commands_of(workflow)) for workflow in ("ci", "release"))
    assert "make test-all" in commands_of("nightly")
    assert "schedule" in yaml.safe_load(WORKFLOWS["nightly"])[True]


@pytest.mark.goal(id="R29")
def test_the_security_rules_hold_and_every_exception_has_a_reason(record_property):
    check = [sys.executable, "-m", "ruff", "check", "--select", "S", "monai_diffae"]
    subprocess.run(check, check=True, cwd=ROOT)
    files = (ROOT / "monai_diffae").rglob("*.py")
    exceptions = [line for file in files for line in re.findall(r"# (?:noqa: S\d.*|nosec.*)", file.read_text())]
    record_property("figure", f"ruff's S rules hold; {len(exceptions)} exceptions, each with its reason")
    assert [line for line in exceptions if not re.match(r"# noqa: S\d{3}, \w", line)] == []


def lines_of(name):
    """What follows an instruction, for each of its lines."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    return [line.split(" ", 1)[1] for line in text.splitlines() if line.startswith(f"{name} ")]


def test_only_the_sources_are_copied_and_no_data_or_weights_but_the_shipped_ones():
    sources = {part for rest in lines_of("COPY") if not rest.startswith("--from") for part in rest.split()[:-1]}
    text = (ROOT / "pyproject.toml").read_text()
    included = re.findall(r'^(\w+) = "monai_diffae/\w+"$', text, flags=re.M)  # the wheel is built from what is copied
    assert sources == {"pyproject.toml", "README.md", "LICENSE", "monai_diffae", *included}
    first, *patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    assert first == "*"
    shipped = "bundles/*/models/*.safetensors"
    assert {pattern[1:] for pattern in patterns if pattern.startswith("!")} == {*sources, shipped}
    assert patterns.index(f"!{shipped}") > patterns.index("**/*.safetensors")  # the last pattern that fits counts
    assert {"**/*.pt", "**/*.safetensors", "**/*.parquet", "**/*.db"} <= set(patterns)
