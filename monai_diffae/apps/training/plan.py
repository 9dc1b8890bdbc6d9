"""The command ``plan``: settings of a training that fits into this machine's memory and ends within some minutes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, Le

from monai_diffae import engines
from monai_diffae.apps.command import command, config_file
from monai_diffae.apps.commands import command_line
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Key, Planning, colour_values
from monai_diffae.bundle.code import check_code
from monai_diffae.bundle.config import build, check_dimensions, check_rules, find_device, sequence_values, unknown_key
from monai_diffae.bundle.folders import shipped_bundle
from monai_diffae.data.cases import Case, spread_cases
from monai_diffae.data.progress import count_by_label, track
from monai_diffae.errors import CohortError, ConfigError, MachineError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import torch

    from monai_diffae.apps.training import speed as speeds
    from monai_diffae.bundle import parser as parsing
    from monai_diffae.data import cohort_split, cohorts
    from monai_diffae.data import sequences as case_sequences
    from monai_diffae.data.inspection import survey as surveys

FEW_SCANS = {2: 300, 3: 100}  # by number of axes; the smallest cohorts with useful models: 900 images, 161 volumes
_GIB = 2**30
_USABLE = 0.8  # of the free memory
_MAX_NAMES = 5  # most failed scans that are listed on a terminal
_MEASURED_SCANS = 6


@dataclass(frozen=True)
class Plan:
    """How to train a bundle on a cohort and this machine."""

    survey: surveys.Survey  # the sizes and spacings of the cohort's scans
    proposal: speeds.Proposal  # grid, network and batch, with their memory
    speed: speeds.Speed  # the speed of training with them on this machine
    work: speeds.Work  # what the training has to do
    budget_s: float  # seconds for everything
    budget: int  # bytes that training may use
    device: str  # where it runs
    bundle: str  # folder or name of the bundle to train
    commands: list[str]  # lines for a shell that train with the proposal
    by_label: str = ""  # the scans that cannot be used, by label, in brackets; empty if there are none

    @property
    def timetable(self) -> speeds.Timetable:
        """How long each part takes, and how many epochs the training has."""
        return self.work.timetable(self.speed, self.budget_s)

    @property
    def settings(self) -> dict[str, Any]:
        """Values for keys of the configuration."""
        return {**self.proposal.settings, **self.timetable.settings}

    @property
    def needed_images(self) -> int:
        """Images that the network should see so that z_sem is used."""
        return self.speed.needed_images(self.settings["image_size"])

    @property
    def num_cropped(self) -> int:
        """Volumes that are larger than the grid along an axis; 0 for images, which are resized."""
        if "spacing_mm" not in self.settings:
            return 0
        size, spacing_mm = self.settings["image_size"], self.settings["spacing_mm"]
        largest_mm = [(n + 0.5) * mm for n, mm in zip(size, spacing_mm, strict=True)]
        return int((self.survey.fields_mm > largest_mm).any(axis=1).sum())

    def lines(self) -> Iterator[str]:
        """The cohort, the proposal with its memory and time, and the commands."""
        from monai_diffae.apps.training.verify import survey_lines

        failures = self.survey.failures
        yield f"{counted(len(self.survey.ids), 'scan')} can be used, {len(failures)} cannot{self.by_label}"
        yield from survey_lines(self.survey)
        yield from (f"failed: {failure.case_id}: {failure.reason}" for failure in failures[:_MAX_NAMES])
        if len(failures) > _MAX_NAMES:
            yield f"failed: {len(failures) - _MAX_NAMES} more; the result as JSON lists them all"
        yield from (f"{key}: {value}" for key, value in self.settings.items())
        if self.num_cropped:
            yield f"{counted(self.num_cropped, 'scan')} will be cropped to this grid, which is smaller"
        yield (f"predicted memory: {self.proposal.memory.gib:.2f} GiB of {self.budget / _GIB:.2f} GiB on {self.device}")
        yield from self.time_lines()
        yield from self.commands

    def time_lines(self) -> Iterator[str]:
        """Speed and predicted time."""
        table = self.timetable
        yield f"speed: {self.speed}"
        yield f"predicted time: {table}"
        yield f"the network sees about {counted(table.num_images, 'image')} in {counted(table.num_steps, 'step')}"
        if table.total_s > self.budget_s:
            yield "this takes longer than the given time, so max_minutes will end it early: give more minutes"
        if table.num_images < self.needed_images:
            are_few = len(self.survey.ids) < FEW_SCANS[len(self.settings["image_size"])]
            advice = "with so few scans, more scans help rather than more minutes" if are_few else "give more minutes"
            yield f"z_sem may hardly be used after so few images; about {self.needed_images} are needed: {advice}"

    def figures(self) -> dict[str, Any]:
        """Everything; memory in GiB."""
        table, speed = self.timetable, self.speed
        exact = {
            "seconds_per_step": speed.seconds_per_step,
            "images_per_second": speed.images_per_second,
            "seconds_per_scan": speed.seconds_per_scan,
            "predicted_s": table.total_s,
        }
        return {
            "cohort": self.survey.summary(),
            "settings": self.settings,
            "num_cropped": self.num_cropped,
            "memory": {
                "predicted_gib": round(self.proposal.memory.gib, 3),
                "budget_gib": round(self.budget / _GIB, 3),
                "device": self.device,
            },
            "time": {
                **{key: float(f"{value:.4g}") for key, value in exact.items()},
                "parts_s": {name: round(seconds, 1) for name, seconds in table.seconds.items()},
                "num_images": table.num_images,
                "num_steps": table.num_steps,
                "needed_images": self.needed_images,
            },
            "commands": self.commands,
        }

    @property
    def incomplete(self) -> str | None:
        """How many scans cannot be used."""
        num_failed = len(self.survey.failures)
        total = num_failed + len(self.survey.ids)
        return f"{num_failed} of {total} scans cannot be used{self.by_label}" if num_failed else None


@command
def plan(
    cohort: Path,
    *,
    bundle: Path | None = None,
    minutes: Annotated[float, Gt(0), Le(100_000)] = 10.0,
    memory_gib: Annotated[float, Gt(0), Le(1_000_000)] | None = None,
    planning: Planning = Planning(),
    **keys: Key,
) -> Result:
    """Propose image size, network, batch size and epochs to train a bundle on these scans and this machine.

    The proposal is the finest grid on which training ends within ``minutes``, fits into memory, and sees so many images
    that z_sem is used. For this, it trains for some seconds on a few grids. For volumes, the grid holds 95 % of the
    fields of view along each axis. 2D images are resized to a square. In latent space (overlay ``latent_space``), the
    memory of the first stage counts as well. Only the headers of the other scans are read; ``verify`` reads them all.
    Values in ``overrides``, such as ``batch_size=8``, are decided already; the others are chosen to fit.

    Args:
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        bundle: Folder or name of a bundle; by default ``diffae_3d`` if most scans are volumes, else ``diffae_2d``.
        minutes: Time for the whole training, with reading, validation and pictures.
        memory_gib: Memory that training may use, in GiB; by default 80 % of the device's free memory.
        keys: Any keys of the bundle's configuration, e.g. ``--max_epochs 20 --image_size [96,96]``.

    Returns:
        The proposal as ``plan``, and as figures: ``settings``, ``memory``, ``time``, ``cohort``, ``num_cropped`` and
        the ``commands`` that train with it.

    Raises:
        ConfigError: the bundle, an overlay or the device does not exist, a key is unknown, or the network cannot halve
            the image size.
        CohortError: no usable scan.
        MachineError: this machine does not have the device, or nothing fits into its memory.
    """
    planning = planning.with_keys(keys)
    overlays, columns = planning.overlays, planning.columns
    overrides = {**colour_values(planning.colour), **planning.overrides}
    target = find_device(planning.device)
    budget = memory_budget(memory_gib, target)
    given = {} if bundle is None else read_training_config(bundle, overlays).get()
    cases = cohorts.read_cohort(
        cohort, columns={**given.get("columns", {}), **columns}, image_keys=given.get("image_keys", ["image"])
    )
    named = {**given, **overrides}
    sequences = planning.sequences or named.get("sequences") or case_sequences.usual_sequences(cases)
    encoder, region = named.get("encoder_sequences", []), named.get("region", "whole")
    overrides = {**sequence_values([] if sequences == ["image"] else sequences, encoder), **overrides}
    cases, lacking = cohort_split.ModelImages(sequences, encoder, region).choose(cases)
    survey = surveys.survey_cohort(cases, given.get("spatial_dims"))
    survey.failures.extend(lacking)
    bundle = bundle or Path(f"diffae_{survey.spatial_dims}d")
    parser = read_training_config(bundle, overlays)
    check_code(overrides, "overrides", places=False)
    for key in overrides:
        if (key.rpartition("#")[0] or key) not in parser:
            raise ConfigError(unknown_key(key, set(parser.get())))
    survey = _without_other_colours(survey, cases, {**parser.get(), **overrides})
    parser.update({"dataset_dir": str(cohort), **{f"columns#{word}": name for word, name in columns.items()}})
    parser.update(overrides)
    check_rules(parser.get())
    machine = speeds.open_machine(parser.get(), overrides, budget, target)
    options = speeds.grid_options(machine, survey)
    train, val = _split(parser, survey)
    work = speeds.Work(
        len(train), len(val), {key: machine.value(key) for key in (*speeds.TIME_KEYS, "picture_steps")}, overrides
    )
    items = [case.item() for case in spread_cases(train, _MEASURED_SCANS)]  # the first slices may be empty

    def measure(settings: Mapping[str, Any]) -> speeds.Speed:
        batch_size = max(1, min(int(settings["batch_size"]), len(train)))
        return speeds.measure_speed({**parser.get(), **settings}, target, items, batch_size)

    proposal, speed = speeds.finest_in_time(machine, options, work, measure, 60 * minutes)
    by_label = count_by_label([failure.case_id for failure in survey.failures], cases)
    settings = {**proposal.settings, **work.timetable(speed, 60 * minutes).settings}
    commands = command_lines(bundle, cohort, columns, overlays, settings)
    result = Plan(survey, proposal, speed, work, 60 * minutes, budget, str(target), str(bundle), commands, by_label)
    return Result(
        None, result.figures(), notes=list(result.lines()), incomplete=result.incomplete, content={"plan": result}
    )


def memory_budget(memory_gib: float | None, device: torch.device) -> int:
    """Bytes that training may use: 80 % of the device's free memory, or ``memory_gib`` if that much is free."""
    free = engines.free_memory(device)
    if memory_gib is None and free is None:
        raise MachineError(f"memory_gib: the free memory of {device} is unknown on this machine; give a value")
    given = int(_USABLE * (free or 0)) if memory_gib is None else int(memory_gib * _GIB)
    return given if free is None else min(given, free)


def read_training_config(bundle: Path, overlays: Sequence[Path]) -> parsing.Parser:
    """A bundle's ``train.json`` with overlays; ``bundle`` may also be the name of a shipped bundle."""
    folder = bundle if bundle.is_dir() else shipped_bundle(str(bundle))
    parser = parsing.read_config(config_file(folder, "train", overlays), *overlays)
    check_dimensions(parser.get())
    return parser


def command_lines(
    bundle: Path, cohort: Path, columns: Mapping[str, str], overlays: Sequence[Path], settings: Mapping[str, Any]
) -> list[str]:
    """Lines for a shell: ``init`` if the bundle is a shipped one, and ``train`` with these settings."""
    training = {"cohort": cohort, "overlays": list(overlays), "columns": columns, "overrides": settings}
    if bundle.is_dir():
        return [command_line("train", {"bundle": bundle, **training})]
    init = command_line("init", {"out": "my_bundle", "bundle": bundle})
    return [init, command_line("train", {"bundle": "my_bundle", **training})]


def _without_other_colours(survey: surveys.Survey, cases: Sequence[Case], config: Mapping[str, Any]) -> surveys.Survey:
    """The survey without the scans that a model with these channels refuses."""
    if not isinstance(config.get("in_channels"), int):
        return survey
    readable = set(survey.ids)
    scans = track([case for case in cases if case.id in readable], "looking for colour images")
    refused = surveys.other_channels(scans, config["in_channels"], config.get("colour", "refuse"))
    return survey.after_check([*survey.failures, *refused])


def _split(parser: parsing.Parser, survey: surveys.Survey) -> list[list[Case]]:
    """The usable cases for training and for validation."""
    failed = {failure.case_id for failure in survey.failures}
    copied = parsing.Parser(copy.deepcopy(parser.get()))  # parsing changes a configuration
    cohort = build(copied, "cohort", cohort_split.SplitCohort)
    splits = [[case for case in cohort.split(name) if case.id not in failed] for name in ("train", "val")]
    for name, usable in zip(("train", "val"), splits, strict=True):
        if not usable:
            cohort.items(name)  # raises the error of an empty split
            raise CohortError(
                f"no scan in the split '{name}' can be read: {survey.failures[0].reason}; verify lists all"
            )
    return splits
