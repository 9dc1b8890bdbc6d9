"""The steps of ``start``: look at the cohort, plan, train, and show what the model learned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from monai_diffae.apps.command_lines import command_line
from monai_diffae.apps.examples import find_examples, find_positive, find_targets, held_out_split
from monai_diffae.apps.steps import Steps
from monai_diffae.bundle import layout
from monai_diffae.bundle.model_file import read_description
from monai_diffae.data.atomic import write_json
from monai_diffae.data.cases import safe_id
from monai_diffae.data.cohorts import fingerprint, read_cohort
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.failures import count_failures
from monai_diffae.data.listing import SeparatedTwins
from monai_diffae.errors import ConfigError, counted
from monai_diffae.latents.representation import LEAST_USAGE

if TYPE_CHECKING:
    import pandas as pd

_NUM_MOSAIC, _NUM_EXAMPLES = 8, 4
_FEW_PATIENTS = 10
_SLICES = {"bundle": Path("diffae_2d"), "overrides": {"slice_range": [0.2, 0.8], "slice_step": 1}}  # nearly all slices


@dataclass
class FirstHour:
    """What ``start`` does with a cohort.

    Attributes:
        cohort: folder, table or datalist.
        out: folder of all results.
        minutes: duration of the training.
        targets: label columns to predict; empty: those that are found.
        listing: further arguments of ``list-scans``.
        device: where to compute; None: the GPU if there is one.
        steps: the commands that were run.
        record: what was asked for and decided, as in ``start.json``.
    """

    cohort: Path
    out: Path
    minutes: float
    targets: Sequence[str]
    listing: Mapping[str, Any]
    device: str | None
    steps: Steps = field(init=False)
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps = Steps(self.out / "steps.json", keeps_lines=True)

    @property
    def table(self) -> Path:
        """The table of the scans."""
        return self.out / "scans.csv"

    @property
    def model(self) -> Path:
        """The bundle's folder."""
        return self.out / "model"

    def look(self) -> None:
        """List the scans, and plan the training unless that was done by an earlier call.

        Raises:
            CohortError: no usable scan.
            ConfigError: ``out`` holds the results of another cohort or another duration, or a target is no label.
        """
        listed = self._list_again() if self._record_file.is_file() else self._list()
        missing = next((name for name in self.targets if name not in listed.listing.labels), None)
        if missing is not None:
            raise ConfigError(
                f"targets: there is no label {missing!r}; there are: {', '.join(listed.listing.labels) or 'none'}"
            )
        request = {"cohort": fingerprint(read_cohort(self.table)), "minutes": self.minutes}
        self.record = self._read_record(request)
        if self.record:
            return
        colour = "grey" if listed.appearance.colour else None
        are_few = _are_few_volumes(listed)
        plan = self.steps.prepare(
            "Plan the training", "plan", cohort=self.table, minutes=self.minutes, colour=colour, device=self.device,
            **(_SLICES if are_few else {}),
        )  # fmt: skip
        about = [
            f"{counted(len(listed.listing.cases), 'scan')} of {counted(listed.listing.num_patients, 'patient')}; "
            f"labels: {', '.join(listed.listing.labels) or 'none'}",
            *(["these are few volumes, so the model is trained on their slices"] if are_few else []),
            *([plan.incomplete] if plan.incomplete else []),
            f"training of {plan.bundle}: {_described(plan.settings)}",
            *plan.time_lines(),
        ]
        self.record = {
            "request": request, "bundle": plan.bundle, "settings": plan.settings, "about": about, "is_trained": False,
            "threads": None if plan.timed is None else plan.timed.threads,
        }  # fmt: skip

    def _list(self) -> Any:
        """List the scans, with twins as one patient unless they are in different splits."""
        arguments = {"cohort": self.cohort, "out": self.table, **self.listing}
        try:
            return self.steps.prepare("List the scans", "list-scans", **arguments, group_duplicates=True)
        except SeparatedTwins:
            return self.steps.prepare("List the scans", "list-scans", **arguments)

    def _list_again(self) -> Any:
        """List the scans, which must be those of the earlier call.

        Raises:
            ConfigError: the scans, their labels or the options for listing have changed.
        """
        try:
            return self._list()
        except ConfigError:
            if not self.table.is_file():
                raise
            raise self._made_with_other("scans or labels") from None

    @property
    def _record_file(self) -> Path:
        return self.out / "start.json"

    def _made_with_other(self, what: str) -> ConfigError:
        return ConfigError(f"{self.out.name}: holds what start made with other {what}; choose another out")

    def _read_record(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if not self._record_file.is_file():
            return {}
        record: dict[str, Any] = json.loads(self._record_file.read_text(encoding="utf-8"))
        differ = [name for name, value in request.items() if record["request"].get(name) != value]
        if differ:
            raise self._made_with_other(", ".join(differ))
        return record

    def about(self) -> Iterator[str]:
        """What is going to be done."""
        yield from self.record["about"]
        if self.record["is_trained"]:
            yield f"the training in {self.model} is complete"
        else:
            begun = "is resumed" if (self.model / layout.MODELS / layout.CHECKPOINT).is_file() else "begins"
            yield f"the training {begun} in {self.model}; Ctrl-C interrupts it, and the same command resumes it"
        yield f"then the scans are embedded, and the labels predicted and edited; see {self.out / 'index.html'}"

    def verdict(self) -> Iterator[str]:
        """How good the model is, in short."""
        figures = read_description(layout.model_file(self.model)).get("figures", {})
        usage = figures.get("z_sem_usage")
        if usage is not None:
            use = "the decoder hardly uses z_sem" if usage < LEAST_USAGE else "the decoder uses z_sem"
            yield f"z_sem_usage {usage:.2f}: {use} (1: not at all)"
        num_failed = count_failures(self.model / "failures.csv")
        if num_failed:
            yield f"{num_failed} of the scans could not be used in training: {self.model / 'failures.csv'}"

    def run(self) -> list[tuple[str, str]]:
        """Train, embed, and show what was learned.

        Returns:
            What can be done next: explanations with lines for a shell.
        """
        self._train()
        common = {"bundle": self.model, "cohort": self.table, "device": self.device}
        embedded = self.steps.prepare("Embed the scans", "embed", **common, out=self.out / "embeddings")
        table = read_embeddings(embedded.path)
        targets = find_targets(table, self.targets)
        if targets:
            self.steps.attempt(
                "Predict the labels", "probe", embeddings=embedded.path, out=self.out / "probe", targets=targets
            )
        found = self._find_direction(embedded.path, table, targets)
        label = found or next(iter(targets), None)
        shown = self._shown(table, label)
        if found is None:
            self.steps.attempt(
                "Traverse the main directions", "traverse", bundle=self.model, embeddings=embedded.path,
                out=self.out / "traversal", device=self.device,
            )  # fmt: skip
        else:
            self.steps.attempt(
                f"Edit scans along {found}", "edit", **common, **shown, out=self.out / "edits",
                direction=self._direction(found), captions=[found],
            )  # fmt: skip
        self.steps.attempt(
            "Find similar scans", "neighbors", embeddings=embedded.path, out=self.out / "neighbors", **common, **shown,
            captions=[] if label is None else [label],
        )  # fmt: skip
        self.steps.attempt(
            "Reconstruct held-out scans", "reconstruct", **common, out=self.out / "reconstructions", mode="both",
            split=held_out_split(table), limit=_NUM_MOSAIC,
        )  # fmt: skip
        return list(self._next_lines(embedded.path, targets, found))

    def _find_direction(self, embeddings: Path, table: pd.DataFrame, targets: Sequence[str]) -> str | None:
        """The first label that z_sem predicts better than chance, as the score's interval says; None: there is none."""
        for target in targets:
            fitted = self.steps.attempt(
                f"Find the direction of {target}", "fit-direction", embeddings=embeddings, target=target,
                out=self._direction(target), positive=find_positive(table, target),
            )  # fmt: skip
            if fitted is not None and not fitted.direction.may_be_chance:
                return target
        return None

    def _direction(self, target: str) -> Path:
        return self.out / f"{safe_id(target)}.json"

    def _shown(self, table: pd.DataFrame, target: str | None) -> dict[str, Any]:
        """The arguments that choose cases for pictures: held-out ones, from both ends of a label."""
        if target is not None and (cases := find_examples(table, target, _NUM_EXAMPLES)):
            return {"cases": cases}
        return {"split": held_out_split(table), "limit": _NUM_EXAMPLES}

    def _train(self) -> None:
        write_json(self._record_file, self.record)
        if not self.model.is_dir():
            self.steps.prepare("Make a bundle", "init", out=self.model, bundle=self.record["bundle"])
        if self.record["is_trained"]:
            return
        settings, threads = self.record["settings"], self.record["threads"]
        if threads is not None:
            torch.set_num_threads(threads)
        self.steps.prepare(
            "Train", "train", bundle=self.model, cohort=self.table, device=self.device, overrides=settings
        )
        self.record["is_trained"] = True
        write_json(self._record_file, self.record)

    def _next_lines(self, embeddings: Path, targets: Sequence[str], found: str | None) -> Iterator[tuple[str, str]]:
        longer = {
            "cohort": self.table, "out": f"{self.out}_longer", "minutes": 60, "targets": list(self.targets),
            "device": self.device,
        }  # fmt: skip
        why = "Train a better model, for an hour:"
        if targets and found is None:
            why = (
                f"z_sem predicts none of the labels ({', '.join(targets)}) clearly better than chance, so no scan is "
                f"edited along one. {why}"
            )
        yield why, command_line("start", longer)
        opened = {"bundle": self.model, "cohort": self.table}
        yield (
            "Open a page with a map of all scans, and sliders that edit them:",
            command_line("explore", {**opened, "embeddings": embeddings}),
        )
        yield (
            "Make a report to send around:",
            command_line("report", {**opened, "out": self.out / "report", "targets": list(targets)}),
        )
        if found is not None:
            grades = {"embeddings": embeddings, "out": self.out / "grades.csv", "direction": self._direction(found)}
            yield f"Grade every scan along {found}:", command_line("grade", grades)
        unusual = {**opened, "out": self.out / "anomaly", "split": "val", "limit": 8}
        yield "Show what is unusual inside scans:", command_line("anomaly", unusual)


def _are_few_volumes(listed: Any) -> bool:
    """Whether a 3D model would see too few volumes, while a 2D model has many slices."""
    return listed.appearance.num_volumes > 0 and listed.listing.num_patients < _FEW_PATIENTS


def _described(settings: Mapping[str, Any]) -> str:
    """Size and length of a training in words."""
    size = " x ".join(map(str, settings["image_size"]))
    spacing = " x ".join(f"{mm:g}" for mm in settings.get("spacing_mm", ()))
    return f"images of {size}{f' voxels of {spacing} mm' if spacing else ' pixels'}, {settings['max_epochs']} epochs"
