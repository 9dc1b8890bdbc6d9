"""The command ``plan``: propose how to train a bundle on a cohort and a machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult
from monai_diffae.apps.settings import NONE_GIVEN, Columns, Overrides, colour_values
from monai_diffae.errors import ConfigError, MachineError, counted
from monai_diffae.policies import Colour

if TYPE_CHECKING:
    from monai_diffae.apps.training.proposals import Proposal
    from monai_diffae.apps.training.timed_plans import TimedProposal
    from monai_diffae.data.survey import Survey
    from monai_diffae.data.twin_reports import TwinReport

_MAX_NAMES = 5  # most failed scans that are listed on a terminal
_GIB = 2**30  # as in monai_diffae.engines.memory; this module loads no torch


@dataclass(frozen=True)
class Plan(CommandResult):
    """The result of :func:`plan`.

    Attributes:
        survey: the sizes and spacings of the cohort's scans.
        proposal: values for keys of the configuration, and the memory that training with them is predicted to use.
        num_cropped: scans that are larger than the proposed grid along an axis.
        budget: bytes that training may use.
        device: where it will run.
        bundle: folder or name of the bundle to train.
        commands: lines for a shell that train with the proposal.
        timed: the proposal with its measured speed and its timetable; None: it was not measured.
        twins: identical and nearly identical scans; None: the scans were not read.
        by_label: the scans that cannot be used, by label, in brackets; empty if there are none.
    """

    survey: Survey
    proposal: Proposal
    num_cropped: int
    budget: int
    device: str
    bundle: str
    commands: list[str]
    timed: TimedProposal | None = None
    twins: TwinReport | None = None
    by_label: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Values for keys of the configuration."""
        return self.proposal.settings

    @property
    def predicted_s(self) -> float | None:
        """Predicted duration of the training in seconds, from the start of the program; None: not measured."""
        return None if self.timed is None else self.timed.timetable.total_s

    def lines(self) -> Iterator[str]:
        """The cohort, the proposal with its memory and time, and the commands."""
        yield from self._cohort_lines()
        yield from (f"{key}: {value}" for key, value in self.proposal.settings.items())
        if self.num_cropped:
            yield f"{counted(self.num_cropped, 'scan')} will be cropped to this grid, which is smaller"
        memory = f"{self.proposal.memory.gib:.2f} GiB of {self.budget / _GIB:.2f} GiB on {self.device}"
        yield f"predicted memory: {memory}"
        yield from self.time_lines()
        if self.timed is not None and self.timed.threads is not None:
            yield (
                "other programs use the processors, so one thread is fastest: train with --threads 1 "
                "(start and train --minutes use one thread anyway)"
            )
        yield from self.commands

    def within(self, seconds: float) -> Plan:
        """The same grid with another budget of time, and other epochs.

        Raises:
            MachineError: no time was measured.
        """
        if self.timed is None:
            raise MachineError(
                f"minutes: this machine has no {self.device}, so its speed cannot be measured; choose another device"
            )
        timed = self.timed.within(seconds)
        return replace(self, proposal=replace(self.proposal, settings=timed.settings), timed=timed)

    def time_lines(self) -> Iterator[str]:
        """Speed and predicted time."""
        if self.timed is None:
            yield "predicted time: not measured"
            return
        timed, table = self.timed, self.timed.timetable
        yield f"speed: {timed.speed}"
        yield f"predicted time: {table}"
        yield f"the network sees {counted(table.num_images, 'image')} in {counted(table.num_steps, 'step')}"
        if not timed.ends_in_time:
            yield "even one epoch takes longer than the given time, so max_minutes will end it early: give more minutes"
        if not timed.uses_z_sem:
            yield (
                f"z_sem may hardly be used after so few images; about {timed.needed_images} are needed: give more "
                "minutes"
            )

    def _cohort_lines(self) -> Iterator[str]:
        from monai_diffae.apps.training.survey_lines import survey_lines

        survey = self.survey
        yield f"{counted(len(survey.ids), 'scan')} can be used, {len(survey.failures)} cannot{self.by_label}"
        yield from survey_lines(survey)
        yield from (f"failed: {failure.case_id}: {failure.reason}" for failure in survey.failures[:_MAX_NAMES])
        if len(survey.failures) > _MAX_NAMES:
            yield f"failed: {len(survey.failures) - _MAX_NAMES} more; the result as JSON lists them all"
        if self.twins is not None:
            yield from self.twins.lines()

    def figures(self) -> dict[str, Any]:
        """Everything; memory in GiB."""
        memory = {
            "predicted_gib": round(self.proposal.memory.gib, 3),
            "budget_gib": round(self.budget / _GIB, 3),
            "device": self.device,
        }
        return {
            "cohort": self.survey.summary(),
            "twins": None if self.twins is None else self.twins.figures(),
            "settings": self.proposal.settings,
            "num_cropped": self.num_cropped,
            "memory": memory,
            "time": None if self.timed is None else self.timed.figures(),
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
    memory_only: bool = False,
    memory_gib: Annotated[float, Gt(0), Le(1_000_000)] | None = None,
    device: str | None = None,
    check: bool = False,
    overlays: Sequence[Path] = (),
    columns: Columns = NONE_GIVEN,
    colour: Colour | None = None,
    overrides: Overrides = NONE_GIVEN,
) -> Plan:
    """Propose image size, network, batch size and epochs to train a bundle on these scans and this machine.

    The proposal is the finest grid on which training ends within ``minutes``, fits into memory, and sees so many images
    that z_sem is used. For this, it trains for some seconds on a few grids. For volumes, the grid holds 95 % of the
    fields of view along each axis. 2D images are resized to a square. In latent space (overlay ``latent_space``), the
    memory of the first stage counts as well. Only the headers of the other scans are read, unless ``check`` is set.

    Args:
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        bundle: Folder or name of a bundle; by default ``diffae_3d`` if most scans are volumes, else ``diffae_2d``.
        minutes: Time for the whole training, with reading, validation and pictures.
        memory_only: Propose the finest grid that fits into memory, and measure no time. This is also done if this
            machine does not have the device.
        memory_gib: Memory that training may use, in GiB; by default 80 % of the device's free memory.
        device: Where training will run, e.g. ``cpu`` or ``cuda:1``; by default the GPU if there is one. If
            ``memory_gib`` is given, this machine need not have it.
        check: Read and preprocess every scan as training does, list those that it would leave out, and find twins:
            scans that are identical or nearly so. The command ``verify`` says more about the scans themselves.
        overlays: Configuration files that replace values of the bundle's, in this order.
        columns: Names that the table uses for image, id, patient or split, e.g. ``image=file patient=subject``.
        colour: Colour images: ``refuse`` them, convert them to ``grey``, or train on ``rgb``; by default the bundle's.
        overrides: Values that are decided already, e.g. ``batch_size=8``; the others are chosen to fit.

    Returns:
        The proposal, with the command lines that train with it.

    Raises:
        ConfigError: the bundle, an overlay or the device does not exist, a key is unknown, or the network cannot halve
            the image size.
        CohortError: no usable scan.
        MachineError: nothing fits into the memory.

    Example:
        >>> plan("scans.csv", memory_gib=-1)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: memory_gib: -1 is not above 0
    """
    from monai_diffae.apps.training import planning
    from monai_diffae.apps.training.plan_checks import unusable_scans
    from monai_diffae.apps.training.proposals import open_machine, propose
    from monai_diffae.bundle.code import check_code
    from monai_diffae.data.cohorts import read_cohort
    from monai_diffae.data.failures import count_by_label
    from monai_diffae.data.progress import track
    from monai_diffae.data.survey import other_channels, survey_cohort

    overrides = {**colour_values(colour), **overrides}
    target = planning.find_device(device)
    budget = planning.memory_budget(memory_gib, target)
    given = {} if bundle is None else planning.read_training_config(bundle, overlays).get()
    cases = read_cohort(
        cohort, columns={**given.get("columns", {}), **columns}, image_keys=given.get("image_keys", ["image"])
    )
    scans = track(cases, "reading every scan") if check else cases
    survey = survey_cohort(scans, given.get("spatial_dims"), fingerprints=check)
    bundle = bundle or Path(f"diffae_{survey.spatial_dims}d")
    parser = planning.read_training_config(bundle, overlays)
    check_code(overrides, "overrides", places=False)
    for key in overrides:
        if (key.rpartition("#")[0] or key) not in parser:
            raise ConfigError(f"{key}: the bundle's train.json has no such key; see it for those it has")
    values = {**parser.get(), **overrides}
    if isinstance(values.get("in_channels"), int):
        readable = set(survey.ids)
        refused = other_channels(
            track([case for case in cases if case.id in readable], "looking for colour images"),
            values["in_channels"], values.get("colour", "refuse"),
        )  # fmt: skip
        survey = survey.after_check([*survey.failures, *refused])
    data = {"dataset_dir": str(cohort), **{f"columns#{word}": name for word, name in columns.items()}}
    if memory_only or not planning.has_device(target):
        machine = open_machine(parser.get(), overrides, budget, target)
        proposal, timed = propose(machine, survey), None
    else:
        parser.update({**data, **overrides})
        machine = open_machine(parser.get(), overrides, planning.available(budget, target), target)
        timed = planning.timed_proposal(parser, survey, machine, 60 * minutes)
        proposal = replace(timed.grid, settings=timed.settings)
    if check:
        survey = survey.after_check(unusable_scans(parser.get(), {**data, **proposal.settings}))
    commands = planning.command_lines(bundle, cohort, columns, overlays, proposal.settings)
    by_label = count_by_label([failure.case_id for failure in survey.failures], cases)
    num_cropped = planning.count_cropped(survey, proposal.settings)
    twins = planning.twins_in(cases, survey) if check else None
    return Plan(survey, proposal, num_cropped, budget, str(target), str(bundle), commands, timed, twins, by_label)
