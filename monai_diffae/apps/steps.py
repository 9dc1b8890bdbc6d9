"""Run ordinary commands one after the other, and show each as a line for a shell."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monai_diffae.apps.command_lines import command_line
from monai_diffae.apps.commands import COMMANDS
from monai_diffae.apps.results import CommandResult
from monai_diffae.errors import find_diffae_error, one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One command with its arguments.

    Attributes:
        title: what it is for, as a heading.
        command: its name, such as ``embed``.
        arguments: by their names in Python.
        is_preparation: whether it only prepares other steps.
    """

    title: str
    command: str
    arguments: Mapping[str, Any]
    is_preparation: bool = False

    @property
    def line(self) -> str:
        """The step as a line for a shell."""
        return command_line(self.command, self.arguments)


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        step: the step.
        seconds: how long it took; near 0 if its results were complete already.
        result: what the command returned; None: it failed.
        error: one line; None: it did not fail.
    """

    step: Step
    seconds: float
    result: CommandResult | None = None
    error: str | None = None


@dataclass
class Steps:
    """Runs steps and keeps their outcomes.

    Attributes:
        outcomes: of all steps so far, in order.
    """

    outcomes: list[Outcome] = field(default_factory=list)

    def prepare(self, title: str, command: str, **arguments: Any) -> Any:
        """Run a step that the other steps need.

        Returns:
            What the command returns.

        Raises:
            DiffAEError: the command failed.
        """
        return self._run(Step(title, command, arguments, is_preparation=True))

    def attempt(self, title: str, command: str, **arguments: Any) -> Any:
        """Run a step that no other step needs; if it fails, the reason is logged and kept.

        Returns:
            What the command returns; None if it failed.
        """
        step, start = Step(title, command, arguments), time.monotonic()
        try:
            return self._run(step)
        except Exception as error:
            if find_diffae_error(error) is None:
                raise
            reason = one_line(error)
        logger.warning("%s: omitted (%s)", title, reason)
        self.outcomes.append(Outcome(step, time.monotonic() - start, error=reason))
        return None

    def _run(self, step: Step) -> CommandResult:
        logger.info("\n%s\n$ %s", step.title, step.line)
        start = time.monotonic()
        command = next(command for command in COMMANDS if command.name == step.command)
        result: CommandResult = command.load()(**step.arguments)
        for line in result.lines():
            logger.info("%s", line)
        self.outcomes.append(Outcome(step, time.monotonic() - start, result))
        return result
