"""Fixtures of the reliability goals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def console(run: Callable[..., tuple[Any, str, str]]) -> Callable[..., tuple[Any, str]]:
    """Runs the program in this process: (exit code, what a console shows, its log included)."""

    def call(*arguments: object) -> tuple[Any, str]:
        root = logging.getLogger()
        pytests_own, root.handlers = root.handlers, []  # with these, the program would set up no log
        try:
            code, output, errors = run(*arguments)
        finally:
            root.handlers = pytests_own
        return code, output + errors

    return call
