"""The command ``plan``: propose how to train a bundle on a cohort and a machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult
from monai_diffae.apps.settings import NONE_GIVEN, Colour, Columns, Overrides, colour_values
from monai_diffae.errors import ConfigError

if TYPE_CHECKING:
    from monai_diffae.apps.training.proposals import Proposal
    from monai_diffae.apps.training.speed import Speed
    from monai_diffae.data.survey import Survey
    from monai_diffae.data.twin_reports import TwinReport

_MAX_NAMES = 5  # most outliers, and most failed scans, that are listed on a terminal
_GIB = 2**30


@dataclass(frozen=True)
class Plan(CommandResult):
    """The result of :func:`plan`.

    Attributes:
        survey: the sizes and spacings of the cohort's scans.
        proposal: values for keys of the configuration, and the memory that training with them is predicted to use.
        num_cropped: scans that are larger than the proposed grid along an axis.
        budget: bytes that training may use.
        device: where it will run.
        commands: lines for a shell that train with the proposal.
        speed: the speed of training with it; None: it was not measured.
        twins: identical and nearly identical scans; None: the scans were not read.
    """

    survey: Survey
    proposal: Proposal
    num_cropped: int
    budget: int
    device: str
    commands: list[str]
    speed: Speed | None = None
    twins: TwinReport | None = None

    def lines(self) -> Iterator[str]:
        """The cohort, the proposal with its memory and time, and the commands."""
        yield from self._cohort_lines()
        yield from (f"{key}: {value}" for key, value in self.proposal.settings.items())
        if self.num_cropped:
            yield f"{self.num_cropped} scans are larger than this grid and will be cropped"
        memory = f"{self.proposal.memory.gib:.2f} GiB of {self.budget / _GIB:.2f} GiB on {self.device}"
        yield f"predicted memory: {memory}"
        yield (
            "time: not measured; set measure to train for some seconds" if self.speed is None else f"time: {self.speed}"
        )
        yield from self.commands

    def _cohort_lines(self) -> Iterator[str]:
        from rich.table import Table

        from monai_diffae.apps.text_tables import table_lines

        survey, summary = self.survey, self.survey.summary()
        yield f"{len(survey.ids)} scans can be used, {len(survey.failures)} cannot"
        axes = "R x A x S" if survey.spatial_dims == 3 else "rows x columns"
        table = Table(axes, "5th percentile", "median", "95th percentile")
        for name, key in (("size", "size"), ("spacing (mm)", "spacing_mm"), ("field of view (mm)", "field_mm")):
            table.add_row(name, *(" x ".join(f"{v:g}" for v in summary[key][p]) for p in ("p5", "p50", "p95")))
        yield from table_lines(table)
        if survey.outliers:
            names = ", ".join(survey.outliers[:_MAX_NAMES]) + (", ..." if len(survey.outliers) > _MAX_NAMES else "")
            yield f"{len(survey.outliers)} scans differ from the median by more than a factor of two: {names}"
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
            "speed": None if self.speed is None else self.speed.figures(),
            "commands": self.commands,
        }

    @property
    def incomplete(self) -> str | None:
        """How many scans cannot be used."""
        num_failed = len(self.survey.failures)
        return f"{num_failed} of {num_failed + len(self.survey.ids)} scans cannot be used" if num_failed else None


@command
def plan(
    cohort: Path,
    *,
    bundle: Path | None = None,
    memory_gib: Annotated[float, Gt(0), Le(1_000_000)] | None = None,
    device: str | None = None,
    check: bool = False,
    measure: bool = False,
    overlays: Sequence[Path] = (),
    columns: Columns = NONE_GIVEN,
    colour: Colour | None = None,
    overrides: Overrides = NONE_GIVEN,
) -> Plan:
    """Propose image size, batch size and network width to train a bundle on these scans and this machine.

    For volumes, the proposed grid holds 95 % of the fields of view along each axis, with the finest spacing that fits
    into memory. 2D images are resized to a square. In latent space (overlay ``latent_space``), the memory of the first
    stage counts as well. Only the scans' headers are read, unless ``check`` is set.

    Args:
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        bundle: Folder or name of a bundle; by default ``diffae_3d`` if most scans are volumes, else ``diffae_2d``.
        memory_gib: Memory that training may use, in GiB; by default 80 % of the device's free memory.
        device: Where training will run, e.g. ``cpu`` or ``cuda:1``; by default the GPU if there is one. If
            ``memory_gib`` is given, this machine need not have it.
        check: Read and preprocess every scan as training does, list those that it would leave out, and find twins:
            scans that are identical or nearly so.
        measure: Train on noise for some seconds, and estimate how long training takes.
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
        MachineError: nothing fits into the memory, or the proposal to be measured does not fit into this machine's.

    Example:
        >>> plan("scans.csv", memory_gib=-1)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: memory_gib: -1 is not above 0
    """
    from monai_diffae.apps.training import planning
    from monai_diffae.apps.training.plan_checks import unusable_scans
    from monai_diffae.apps.training.proposals import propose
    from monai_diffae.data.cohorts import read_cohort
    from monai_diffae.data.progress import track
    from monai_diffae.data.survey import survey_cohort

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
    for key in overrides:
        if (key.rpartition("#")[0] or key) not in parser:
            raise ConfigError(f"{key}: the bundle's train.json has no such key; see it for those it has")
    proposal = propose(parser.get(), survey, budget, target, overrides)
    speed = None
    found = {"dataset_dir": str(cohort), **{f"columns#{word}": name for word, name in columns.items()}}
    if measure:
        parser.update({**proposal.settings, **found})
        speed = planning.measured_speed(parser, survey, proposal, target)
    if check:
        survey = survey.after_check(unusable_scans(parser.get(), {**found, **proposal.settings}))
    commands = planning.command_lines(bundle, cohort, columns, overlays, proposal.settings)
    num_cropped = planning.count_cropped(survey, proposal.settings)
    twins = planning.twins_in(cases, survey) if check else None
    return Plan(survey, proposal, num_cropped, budget, str(target), commands, speed, twins)
