"""A pytest plugin: the tests of each reliability goal (docs/reliability.md) as a table at the end of a run.

A test names its goal with ``@pytest.mark.goal(id="R5")``, and reports what it measured with pytest's fixture
``record_property("figure", "200 of 200 flips noticed")``.
"""

from collections import defaultdict

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "goal(id): tests a goal of docs/reliability.md; run by `make test-robustness`")


def pytest_collection_modifyitems(items):
    for item in items:  # user properties travel from the worker processes of pytest-xdist, markers do not
        item.user_properties.extend(("goal", mark.kwargs["id"]) for mark in item.iter_markers("goal"))


def pytest_terminal_summary(terminalreporter, config):
    if "goal" not in (config.option.markexpr or ""):
        return
    outcomes = defaultdict(lambda: defaultdict(int))
    figures = defaultdict(list)
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            if not isinstance(report, pytest.TestReport):  # a whole file was skipped, or could not be read
                continue
            if outcome == "passed" and report.when != "call":
                continue
            for goal in {value for name, value in report.user_properties if name == "goal"}:
                outcomes[goal][outcome] += 1
                figures[goal] += [value for name, value in report.user_properties if name == "figure"]
    terminalreporter.section("goals")
    for goal in sorted(outcomes, key=lambda name: int(name[1:])):
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes[goal].items())
        terminalreporter.line("; ".join([f"{goal:4} {counts}", *figures[goal]]))
