"""Fixtures of the reliability goals."""

import logging

import pytest


@pytest.fixture
def console(run):
    """Runs the program in this process: (exit code, what a console shows, its log included)."""

    def call(*arguments):
        root = logging.getLogger()
        pytests_own, root.handlers = root.handlers, []  # with these, the program would set up no log
        try:
            code, output, errors = run(*arguments)
        finally:
            root.handlers = pytests_own
        return code, output + errors

    return call
