"""The ordinary commands that a report runs about one bundle, and their results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from monai_diffae.apps.command_lines import command_line
from monai_diffae.apps.commands import COMMANDS
from monai_diffae.apps.examples import find_examples, find_targets, held_out_split
from monai_diffae.apps.steps import Outcome, Step, Steps
from monai_diffae.bundle.layout import LATENT_MODEL, models_folder
from monai_diffae.data.cases import safe_id
from monai_diffae.data.embeddings import label_columns, read_embeddings
from monai_diffae.errors import ConfigError

NUM_MOSAIC = {2: 8, 3: 4}
"""Reconstructed cases in the page, by the number of spatial axes: volumes take more room."""

_NUM_EDITED, _NUM_SAMPLES, _MOST_EDITED_TARGETS = 4, 16, 2


@dataclass
class Study:
    """A bundle, and what the commands find out about it.

    Attributes:
        bundle: the bundle's folder.
        folder: the folder of the results, one folder per command.
        cohort: folder, table or datalist; None: only what needs no scans is shown.
        targets: label columns to predict and to edit; empty: those that are found.
        device: where to compute; None: the GPU if there is one.
        overwrite: replace existing results.
        steps: the commands that were run.
        outcomes: what became of each step, by the name of its folder.
    """

    bundle: Path
    folder: Path
    cohort: Path | None = None
    targets: Sequence[str] = ()
    device: str | None = None
    overwrite: bool = False
    steps: Steps = field(default_factory=Steps)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.bundle.resolve().name

    @property
    def embeddings(self) -> Path:
        """The table of embeddings."""
        return self.folder / "embeddings" / "embeddings.parquet"

    @cached_property
    def table(self) -> pd.DataFrame:
        """The embeddings of the cohort."""
        return read_embeddings(self.embeddings)

    @cached_property
    def labels(self) -> list[str]:
        """The labels to predict.

        Raises:
            ConfigError: a target is no label of the cohort.
        """
        names = label_columns(self.table)
        missing = next((name for name in self.targets if name not in names), None)
        if missing is not None:
            raise ConfigError(f"targets: there is no label {missing!r}; choose from: {', '.join(names) or 'none'}")
        return find_targets(self.table, self.targets)

    def result(self, name: str) -> Any:
        """What a step returned; None if there was no such step, or if it failed."""
        return self.outcomes[name].result if name in self.outcomes else None

    def lines(self, *names: str) -> list[str]:
        """The commands of some steps as lines for a shell, without the folders that they were given."""
        return [self._shown_line(self.outcomes[name].step) for name in names if name in self.outcomes]

    def run(self) -> None:
        """Run all commands; complete results are skipped.

        Raises:
            ConfigError: the bundle is not trained, or a target is no label.
        """
        self._keep("info", self.steps.prepare("Look at the model", "info", bundle=self.bundle))
        if self.cohort is not None and self._attempt("embeddings", "Embed the scans", "embed", **self._opened):
            self._look_at_cases()
        if (models_folder(self.bundle) / LATENT_MODEL).is_file():
            self._generate()

    @property
    def _opened(self) -> dict[str, Any]:
        return {"bundle": self.bundle, "cohort": self.cohort}

    def _look_at_cases(self) -> None:
        labels, split = self.labels, held_out_split(self.table)
        num_cases = NUM_MOSAIC[int(self.result("info").summary["spatial_dims"])]
        self._attempt(
            "reconstructions", "Reconstruct scans", "reconstruct", **self._opened, mode="both", grid="model",
            split=split, limit=num_cases,
        )  # fmt: skip
        self._attempt("neighbors", "Find similar scans and outliers", "neighbors", embeddings=self.embeddings)
        if labels:
            self._attempt("probe", "Predict the labels", "probe", embeddings=self.embeddings, targets=labels)
        for target in labels[:_MOST_EDITED_TARGETS]:
            self._edit(target, split)
        if any(command.name == "evaluate" for command in COMMANDS):
            self._attempt("evaluation", "Evaluate the model", "evaluate", **self._opened)

    def _edit(self, target: str, split: str | None) -> None:
        """Edit scans from both ends of a label along its direction."""
        name, cases = safe_id(target), find_examples(self.table, target, _NUM_EDITED)
        direction = self.folder / "directions" / f"{name}.json"
        fitted = self._attempt(
            f"directions/{name}.json", f"Find the direction of {target}", "fit-direction", embeddings=self.embeddings,
            target=target,
        )  # fmt: skip
        if fitted is not None:
            choice: dict[str, Any] = {"cases": cases} if cases else {"split": split, "limit": _NUM_EDITED}
            self._attempt(
                f"edits/{name}", f"Edit scans along {target}", "edit", **self._opened, direction=direction,
                captions=[target], **choice,
            )  # fmt: skip

    def _generate(self) -> None:
        samples = self._attempt(
            "samples", "Generate synthetic images", "generate", bundle=self.bundle, num_images=_NUM_SAMPLES
        )
        if samples is not None and self.result("embeddings") is not None:
            self._attempt(
                "samples_neighbors", "Find the cases nearest to the synthetic images", "neighbors",
                embeddings=self.embeddings, queries=self.folder / "samples" / "generated.parquet",
            )  # fmt: skip

    def _attempt(self, name: str, title: str, command: str, **arguments: Any) -> Any:
        """Run a step whose results go to ``folder / name``."""
        given = {**arguments, "out": self.folder / name}
        if command not in ("probe", "neighbors", "fit-direction"):
            given["device"] = self.device
        if self.overwrite:
            given["overwrite"] = True
        result = self.steps.attempt(title, command, **given)
        self._keep(name, result)
        return result

    def _keep(self, name: str, result: Any) -> None:
        self.outcomes[name] = self.steps.outcomes[-1]

    def _shown_line(self, step: Step) -> str:
        return command_line(step.command, {name: self._shown(value) for name, value in step.arguments.items()})

    def _shown(self, value: Any) -> Any:
        """A path without the folders that lead to it, which may name people."""
        if not isinstance(value, Path):
            return value
        path, root = value.resolve(), self.folder.resolve()
        return path.relative_to(root.parent) if path.is_relative_to(root) else Path(path.name)


def all_lines(study: Study) -> Iterator[str]:
    """Every command of a study, in order."""
    yield from study.lines(*study.outcomes)


def failures_in(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The failed cases that the commands listed below a folder: the name of the list's folder, and the row."""
    for file in sorted(folder.rglob("*failures.csv")):
        for row in pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records"):
            yield file.parent.name, {str(key): str(value) for key, value in row.items()}
