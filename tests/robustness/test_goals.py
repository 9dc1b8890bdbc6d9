"""The table of docs/reliability.md has every goal, and every goal has tests."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
GOALS = [f"R{number}" for number in range(1, 31)]


def test_the_table_has_every_goal_and_each_has_tests() -> None:
    table = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (R\d+) \|", table, flags=re.M) == GOALS
    marked = {
        goal
        for file in (ROOT / "tests").rglob("test_*.py")
        for goal in re.findall(r"goal\(id=\"(R\d+)\"\)", file.read_text(encoding="utf-8"))
    }
    assert marked == set(GOALS)
