"""Run ordinary commands one after the other, and show each as a line for a shell."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai_diffae.apps.commands import command_line, find_command
from monai_diffae.apps.result import Result
from monai_diffae.data.atomic import write_json
from monai_diffae.data.fingerprints import json_digest
from monai_diffae.errors import OmittableError, OtherResultsError, find_diffae_error, one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One command with its arguments."""

    title: str  # what it is for, as a heading
    command: str  # its name, such as `embed`
    arguments: Mapping[str, Any]  # by their names in Python
    is_preparation: bool = False  # whether it only prepares other steps
    is_replaced: bool = False  # whether results of other settings are replaced: not embeddings, which take long
    typed: str | None = None

    @property
    def line(self) -> str:
        """The step as a line for a shell."""
        return self.typed or command_line(self.command, self.arguments)


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    step: Step
    seconds: float  # how long it took; if its results were complete already, how long it took when they were made
    result: Result | None = None
    error: str | None = None  # one line; None: it did not fail
    warnings: tuple[str, ...] = ()  # what the command warned of when its results were made


@dataclass
class Steps:
    """Runs steps and keeps their outcomes."""

    journal: Path | None = None
    keeps_lines: bool = False
    outcomes: list[Outcome] = field(default_factory=list)  # of all steps of this call, in order

    def prepare(self, title: str, command: str, **arguments: Any) -> Any:
        """Run a step that the other steps need, and return its result."""
        return self._run(Step(title, command, arguments, is_preparation=True))

    def attempt(self, title: str, command: str, **arguments: Any) -> Any:
        """Run a step that no other step needs; if it fails, the reason is logged and kept, and the result is None."""
        step, start = Step(title, command, arguments, is_replaced=command != "embed"), time.monotonic()
        try:
            return self._run(step)
        except Exception as error:
            if not isinstance(find_diffae_error(error), OmittableError):
                raise
            reason = one_line(error)
        logger.warning("%s: omitted (%s)", title, reason)
        self.outcomes.append(Outcome(step, time.monotonic() - start, error=reason))
        return None

    def with_earlier(self) -> list[Outcome]:
        """The outcomes of this call, after the preparations that only earlier calls had to do."""
        ran = {_key(outcome.step) for outcome in self.outcomes}
        earlier = [
            Outcome(
                Step(each["title"], each["command"], {}, is_preparation=True, typed=each["line"]),
                each["seconds"],
                warnings=tuple(each["warnings"]),
            )
            for key, each in self._notes().items()
            if key not in ran and "line" in each
        ]
        return [*earlier, *self.outcomes]

    def _run(self, step: Step) -> Result:
        logger.info("\n%s\n$ %s", step.title, step.line)
        start = time.monotonic()
        run = find_command(step.command).load()
        with _kept_warnings() as warnings:
            try:
                result: Result = run(**step.arguments)
            except OtherResultsError:
                if not step.is_replaced:
                    raise
                result = run(**{**step.arguments, "overwrite": True})
        for line in result.lines():
            if not line.startswith("next: "):  # what comes next is the next step
                logger.info("%s", line)
        self.outcomes.append(self._noted(Outcome(step, time.monotonic() - start, result, warnings=tuple(warnings))))
        return result

    def _noted(self, outcome: Outcome) -> Outcome:
        """The outcome as the journal keeps it: of the call that made the results."""
        notes, key, step = self._notes(), _key(outcome.step), outcome.step
        if outcome.result is not None and outcome.result.skipped and key in notes:
            return replace(outcome, seconds=notes[key]["seconds"], warnings=tuple(notes[key]["warnings"]))
        notes[key] = {
            "title": step.title,
            "command": step.command,
            "seconds": outcome.seconds,
            "warnings": outcome.warnings,
            **({"line": step.line} if self.keeps_lines and step.is_preparation else {}),
        }
        if self.journal is not None:
            write_json(self.journal, notes)
        return outcome

    def _notes(self) -> dict[str, Any]:
        if self.journal is None or not self.journal.is_file():
            return {}
        notes: dict[str, Any] = json.loads(self.journal.read_text(encoding="utf-8"))
        return notes


def _key(step: Step) -> str:
    """What the journal calls a step: a hash, because its line may have paths."""
    return json_digest([step.line])[:16]


@contextmanager
def _kept_warnings() -> Iterator[list[str]]:
    """The warnings of our commands, each once."""
    warnings: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (text := record.getMessage()) not in warnings:
                warnings.append(text)

    handler, ours = Keep(logging.WARNING), logging.getLogger("monai_diffae")
    ours.addHandler(handler)
    try:
        yield warnings
    finally:
        ours.removeHandler(handler)
