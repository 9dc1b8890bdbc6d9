"""The result of a command that runs other commands as steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monai_diffae.apps.results import FolderResult

if TYPE_CHECKING:
    from monai_diffae.apps.steps import Outcome


@dataclass(frozen=True)
class StepsResult(FolderResult):
    """The result of commands that were run one after the other.

    Attributes:
        folder: holds the results of every step.
        outcomes: the commands that were run, with their results.
    """

    outcomes: Sequence[Outcome] = ()

    def step_lines(self) -> Iterator[str]:
        """The duration of each step, or why it was omitted."""
        for outcome in self.outcomes:
            yield f"{outcome.step.title}: {outcome.seconds:.0f} s" + (
                f", omitted ({outcome.error})" if outcome.result is None else ""
            )

    @property
    def incomplete(self) -> str | None:
        """Which steps failed."""
        failed = [outcome.step.title for outcome in self.outcomes if outcome.result is None]
        return f"omitted: {', '.join(failed)}" if failed else None
