"""The supply chain: actions are pinned by hash, and SECURITY.md states when to expect an answer."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_actions_are_pinned_by_hash():
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    used = [line for file in workflows for line in re.findall(r"uses: (.+)", file.read_text())]
    assert used
    assert [line for line in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line)] == []


def test_workflows_may_only_read():
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = file.read_text()
        assert "permissions:\n  contents: read\n" in text
        assert text.count("permissions:") == 1


def test_security_says_when_to_expect_an_answer():
    text = (ROOT / "SECURITY.md").read_text()
    for words in ("working days", "In scope", "Not in scope", "newest release"):
        assert words in text
