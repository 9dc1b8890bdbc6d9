"""What a bundle should be trained with on a cohort and a machine: from the scans' headers, and more on demand."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from rich.console import Console
from rich.table import Table

from monai_diffae.apps.training.proposals import Proposal, propose
from monai_diffae.apps.training.speed import Speed, measure_speed
from monai_diffae.bundle.config_values import check_device, check_dimensions
from monai_diffae.bundle.folders import shipped_bundle
from monai_diffae.bundle.loading import build
from monai_diffae.data.cohort_split import SplitCohort
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.progress import shown
from monai_diffae.data.survey import Survey, survey_cohort
from monai_diffae.engines.memory import GIB, free_memory
from monai_diffae.errors import ConfigError, MachineError

_LISTED = 5
_USED = 0.8  # of the free memory, where the user names none


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` found and proposes.

    Attributes:
        survey: the cohort's sizes and spacings.
        proposal: config ids and values, with the memory that they are predicted to take.
        num_cropped: scans that are larger than the proposed grid along an axis.
        budget: bytes that training may take.
        device: where.
        commands: lines for a shell that train with the proposal.
        speed: of training with it; None where it was not measured.
    """

    survey: Survey
    proposal: Proposal
    num_cropped: int
    budget: int
    device: str
    commands: list[str]
    speed: Speed | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON can hold it; memory in GiB."""
        memory = {
            "predicted_gib": round(self.proposal.memory.gib, 3),
            "budget_gib": round(self.budget / GIB, 3),
            "device": self.device,
        }
        return {
            "cohort": self.survey.summary(),
            "settings": self.proposal.settings,
            "num_cropped": self.num_cropped,
            "memory": memory,
            "speed": None if self.speed is None else self.speed.as_json(),
            "commands": self.commands,
        }


def plan(
    cohort: str | os.PathLike[str],
    *,
    bundle: str | os.PathLike[str] | None = None,
    memory_gib: float | None = None,
    device: str | torch.device | None = None,
    columns: Mapping[str, str] | None = None,
    overlays: Sequence[str | os.PathLike[str]] = (),
    overrides: Mapping[str, Any] | None = None,
    check: bool = False,
    measure: bool = False,
) -> Plan:
    """Read a cohort's headers and propose grid, batch and width such that training fits.

    Volumes are taken whole: a grid that holds 95 % of the fields of view along each axis, as fine as fits. 2D images
    are resized to a square. With the overlay ``latent_space`` the first stage counts, too.

    Args:
        cohort: a folder, table, datalist or scan.
        bundle: a bundle's folder or the name of a shipped one; ``diffae_3d`` where most scans are volumes, else
            ``diffae_2d``, when None.
        memory_gib: what training may take; 80 % of what is free on ``device`` when None.
        device: where it will run, which need not be this machine if ``memory_gib`` is given; the GPU if there is one
            when None.
        columns: what the cohort's table calls our words.
        overlays: further config files, laid over the bundle's in this order.
        overrides: config ids and values that are settled, such as ``{"spacing_mm": [2, 2, 2]}``.
        check: read every scan to its end: only so a packed file is known to be whole, and its values to be usable.
        measure: train with the proposal for some seconds, on noise, on ``device``.

    Raises:
        ConfigError: no such bundle, overlay or device, an unknown config id, or a size that the network cannot divide.
        CohortError: no usable scan.
        MachineError: nothing fits; what is to be measured does not fit this machine.
    """
    where = _device(device)
    budget = _budget(memory_gib, where)
    given = {} if bundle is None else _config(bundle, overlays).get()
    named = {**given.get("columns", {}), **(columns or {})}
    cases = read_cohort(cohort, columns=named, image_keys=given.get("image_keys", ["image"]))
    dims = given.get("spatial_dims")
    survey = survey_cohort(shown(cases, "reading every scan") if check else cases, dims, read_whole=check)
    source = bundle or f"diffae_{survey.spatial_dims}d"
    parser = _config(source, overlays)
    for key in overrides or {}:
        if (key.rpartition("#")[0] or key) not in parser:
            raise ConfigError(f"{key}: the bundle's train.json has no such key")
    proposal = propose(parser.get(), survey, budget, where, overrides or {})
    speed = None
    if measure:
        parser.update({**proposal.settings, "dataset_dir": os.fspath(cohort)})
        parser.update({f"columns#{word}": name for word, name in (columns or {}).items()})
        speed = _measured(parser, survey, proposal, where)
    commands = _commands(source, cohort, columns or {}, overlays, proposal.settings)
    return Plan(survey, proposal, _num_cropped(survey, proposal.settings), budget, str(where), commands, speed)


def show(result: Plan) -> None:
    """Print a plan for people: the cohort, the proposal with its memory, and the commands."""
    survey = result.survey
    summary, outliers = survey.summary(), survey.outliers
    table = Table("R x A x S" if survey.spatial_dims == 3 else "rows x columns", "5 %", "median", "95 %")
    for name, key in (("size", "size"), ("spacing (mm)", "spacing_mm"), ("field (mm)", "field_mm")):
        table.add_row(name, *(" x ".join(f"{v:g}" for v in summary[key][p]) for p in ("p5", "p50", "p95")))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{len(survey.ids)} scans, {len(survey.failures)} more that cannot be used")
    console.print(table)
    if outliers:
        console.print(f"{len(outliers)} unlike the others by a factor of two: {_listed(outliers)}")
    for failure in survey.failures[:_LISTED]:
        console.print(f"failed: {failure.case_id}: {failure.reason}")
    if len(survey.failures) > _LISTED:
        console.print(f"failed, too: {len(survey.failures) - _LISTED} more; --json lists them all")
    for key, value in result.proposal.settings.items():
        console.print(f"{key}: {value}")
    if result.num_cropped:
        console.print(f"{result.num_cropped} scans are larger than this grid and would be cropped")
    console.print(
        f"predicted memory {result.proposal.memory.gib:.2f} GiB of {result.budget / GIB:.2f} GiB on {result.device}"
    )
    console.print(
        "time: not measured; --measure trains for some seconds" if result.speed is None else str(result.speed)
    )
    for command in result.commands:
        console.print(command)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _device(device: str | torch.device | None) -> torch.device:
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"device: there is no {str(device)!r}; choose cpu or cuda") from error


def _budget(memory_gib: float | None, device: torch.device) -> int:
    if memory_gib is not None:
        if not 0 < memory_gib < float("inf"):  # NaN too
            raise ConfigError(f"memory_gib is {memory_gib:g}; it must be a number above 0")
        return int(memory_gib * GIB)
    check_device(device)
    free = free_memory(device)
    if free is None:
        raise MachineError(f"the free memory of {device} is unknown on this machine; give --memory-gib")
    return int(_USED * free)


def _measured(parser: ConfigParser, survey: Survey, proposal: Proposal, device: torch.device) -> Speed:
    check_device(device)
    free = free_memory(device)
    if free is not None and proposal.memory.total > free:
        raise MachineError(
            f"the speed cannot be measured: the proposal takes {proposal.memory.gib:.2f} GiB, {free / GIB:.2f} GiB are "
            f"free on {device}; leave --measure out, or give a smaller --memory-gib"
        )
    failed = {failure.case_id for failure in survey.failures}
    cases = build(parser, "cohort", SplitCohort).split("train")
    return measure_speed(parser.get(), device, sum(case.id not in failed for case in cases))


def _config(bundle: str | os.PathLike[str], overlays: Sequence[str | os.PathLike[str]]) -> ConfigParser:
    folder = Path(bundle) if Path(bundle).is_dir() else shipped_bundle(str(bundle))
    file = folder / "configs" / "train.json"
    if not file.is_file():
        raise ConfigError(f"{folder.name}: there is no configs/train.json; name a bundle's folder")
    for overlay in map(Path, overlays):
        if not overlay.is_file():
            raise ConfigError(f"{overlay.name}: there is no such config file; the bundle's configs/overlays has some")
    parser = ConfigParser()
    parser.read_config([str(file), *map(str, overlays)])
    check_dimensions(parser.get())
    return parser


def _num_cropped(survey: Survey, settings: Mapping[str, Any]) -> int:
    if "spacing_mm" not in settings:  # images are resized
        return 0
    grid_mm = np.array(settings["image_size"]) * np.array(settings["spacing_mm"])
    half_a_voxel = np.array(settings["spacing_mm"]) / 2
    return int((survey.fields_mm > grid_mm + half_a_voxel).any(axis=1).sum())


def _commands(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str],
    columns: Mapping[str, str],
    overlays: Sequence[str | os.PathLike[str]],
    settings: Mapping[str, Any],
) -> list[str]:
    commands, root = [], str(bundle)
    if not Path(bundle).is_dir():
        root = "my_bundle"
        commands.append(shlex.join(["monai-diffae", "init", root, "--bundle", str(bundle)]))
    words = ["monai-diffae", "train", "--bundle", root, "--cohort", os.fspath(cohort)]
    for overlay in overlays:
        words += ["--overlay", os.fspath(overlay)]
    for word, name in columns.items():
        words += ["--column", f"{word}={name}"]
    for key, value in settings.items():
        words += ["--set", f"{key}={_as_typed(value)}"]
    return [*commands, shlex.join(words)]


def _as_typed(value: Any) -> str:
    return str(value).replace(" ", "").lower() if isinstance(value, (bool, list)) else str(value)
