"""docs/reliability.md: every goal has a fast test with its mark, and every mark names a goal of the page."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"


def fast_goals(file):
    """The goals of a file's tests that are not slow as a whole."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    of_file = [ast.unparse(n) for n in tree.body if isinstance(n, ast.Assign) and "pytestmark" in ast.unparse(n)]
    for test in tree.body:
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
            marks = [*of_file, *map(ast.unparse, test.decorator_list)]
            if not any("mark.slow" in mark and "parametrize" not in mark for mark in marks):
                yield from re.findall(r"goal\(id='(R\d+)'\)", " ".join(marks))


def test_every_goal_has_a_fast_test():
    files = sorted(TESTS.rglob("test_*.py"))
    goals = re.findall(r"^\| (R\d+) \|", PAGE.read_text(encoding="utf-8"), flags=re.M)
    assert goals == [f"R{number}" for number in range(1, 31)]
    assert set(goals) - {goal for file in files for goal in fast_goals(file)} == set()
    marks = {goal for file in files for goal in re.findall(r'goal\(id="(R\d+)"\)', file.read_text(encoding="utf-8"))}
    assert marks <= set(goals)
