"""The tables of docs/reliability.md: every goal, and for each a fast test and, where it has one, a campaign."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
GOALS = [f"R{number}" for number in range(1, 31)]


def marks(name):
    """The marks of a test and of its cases, as source code, and whether all its cases are slow."""
    file, _, function = name.partition("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    of_file = [node.value for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
    (test,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    texts = [ast.unparse(mark) for mark in [*of_file, *test.decorator_list]]
    return " ".join(texts), any("mark.slow" in text and "parametrize" not in text for text in texts)


def test_every_goal_has_a_row_a_fast_test_and_its_campaign():
    text = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    promises, tests = text.split("## Tests")
    assert re.findall(r"^\| (R\d+) \|", promises, flags=re.M) == GOALS
    rows = re.findall(r"^\| (R\d+) \| `(\S+)` \| `?(\S+?)`? \|$", tests, flags=re.M)
    assert [goal for goal, _, _ in rows] == GOALS
    for goal, fast, campaign in rows:
        found, is_slow = marks(fast)
        assert f"id='{goal}'" in found, (goal, fast)
        assert not is_slow, (goal, fast)
        if campaign != "-":
            found, _ = marks(campaign)
            assert f"id='{goal}'" in found, (goal, campaign)
            assert "mark.slow" in found, (goal, campaign)
