"""The supply chain: what workflows run and may do, and when SECURITY.md promises an answer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = {file.stem: file.read_text() for file in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}
MAY_WRITE = {("release", "publish"): {"id-token": "write"}, ("release", "attach"): {"contents": "write"}}

pytestmark = pytest.mark.goal(id="R29")


def jobs(workflow: str) -> dict[str, Any]:
    return yaml.safe_load(WORKFLOWS[workflow])["jobs"]


def test_actions_are_pinned_by_hash(record_property):
    used = [line for text in WORKFLOWS.values() for line in re.findall(r"uses: (.+)", text)]
    pinned = [line for line in used if re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line)]
    record_property("figure", f"{len(pinned)} of {len(used)} uses of actions pinned by hash")
    assert used
    assert pinned == used


def test_one_action_is_one_version():
    used = {line for text in WORKFLOWS.values() for line in re.findall(r"uses: (.+)", text)}
    assert len({line.partition("@")[0] for line in used}) == len(used)


def test_only_publishing_may_write():
    assert {yaml.safe_load(text)["permissions"]["contents"] for text in WORKFLOWS.values()} == {"read"}
    own = {(name, job): steps["permissions"] for name in WORKFLOWS for job, steps in jobs(name).items()
           if "permissions" in steps}  # fmt: skip
    assert own == MAY_WRITE


def test_publishing_needs_no_password_and_runs_no_code_of_ours():
    publish = jobs("release")["publish"]
    assert all("run" not in step for step in publish["steps"])
    assert "secrets." not in "".join(WORKFLOWS.values())
    assert publish["environment"] == "pypi"


def test_only_a_tag_publishes_and_only_what_was_built_and_tried():
    assert yaml.safe_load(WORKFLOWS["release"])[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads "on" as true
    needs = {name: job.get("needs") for name, job in jobs("release").items()}
    assert needs == {"build": None, "try": "build", "publish": "try", "attach": "publish"}


def test_vulnerabilities_are_searched_for_by_ci_and_before_a_release():
    for workflow in ("ci", "release"):
        commands = " ".join(step.get("run", "") for job in jobs(workflow).values() for step in job["steps"])
        assert re.search(r"\bmake\b.*\baudit\b", commands)


def test_the_security_rules_hold_and_every_exception_has_a_reason(record_property):
    check = [sys.executable, "-m", "ruff", "check", "--select", "S", "monai_diffae"]
    subprocess.run(check, check=True, cwd=ROOT)
    files = (ROOT / "monai_diffae").rglob("*.py")
    exceptions = [line for file in files for line in re.findall(r"# (?:noqa: S\d.*|nosec.*)", file.read_text())]
    record_property("figure", f"ruff's S rules hold; {len(exceptions)} exceptions, each with its reason")
    assert [line for line in exceptions if not re.match(r"# noqa: S\d{3}, \w", line)] == []


def test_security_says_when_to_expect_an_answer():
    text = (ROOT / "SECURITY.md").read_text()
    for words in ("working days", "In scope", "Not in scope", "newest release"):
        assert words in text
