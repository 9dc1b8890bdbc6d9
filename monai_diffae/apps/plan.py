"""What a bundle should be trained with on a cohort and a machine, from the scans' headers alone."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from rich.console import Console
from rich.table import Table

from monai_diffae.apps.bundles import shipped_bundle
from monai_diffae.apps.proposals import Proposal, propose
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.survey import Survey, survey_cohort
from monai_diffae.engines.config_values import check_device
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
    """

    survey: Survey
    proposal: Proposal
    num_cropped: int
    budget: int
    device: str
    commands: list[str]

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
            "commands": self.commands,
        }


def plan(
    cohort: str | os.PathLike[str],
    *,
    bundle: str | os.PathLike[str] | None = None,
    memory_gib: float | None = None,
    device: str | torch.device | None = None,
    columns: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """Read a cohort's headers and propose grid, batch and width such that training fits.

    Volumes are taken whole: a grid that holds 95 % of the fields of view along each axis, as fine as fits. 2D images
    are resized to a square.

    Args:
        cohort: a folder, table, datalist or scan.
        bundle: a bundle's folder or the name of a shipped one; ``diffae_3d`` where most scans are volumes, else
            ``diffae_2d``, when None.
        memory_gib: what training may take; 80 % of what is free on ``device`` when None.
        device: where it will run, which need not be this machine if ``memory_gib`` is given; the GPU if there is one
            when None.
        columns: what the cohort's table calls our words.
        overrides: config ids and values that are settled, such as ``{"spacing_mm": [2, 2, 2]}``.

    Raises:
        ConfigError: no such bundle or device, an unknown config id, or a size that the network cannot divide.
        CohortError: no usable scan.
        MachineError: nothing fits.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    budget = _budget(memory_gib, where)
    cases = read_cohort(cohort, columns=columns)
    dims = None if bundle is None else int(_config(bundle).get("spatial_dims"))
    survey = survey_cohort(cases, dims)
    source = bundle or f"diffae_{survey.spatial_dims}d"
    parser = _config(source)
    for key in overrides or {}:
        if (key.rpartition("#")[0] or key) not in parser:
            raise ConfigError(f"{key}: the bundle's train.json has no such key")
    proposal = propose(parser.get(), survey, budget, where, overrides or {})
    commands = _commands(source, cohort, columns or {}, proposal.settings)
    return Plan(survey, proposal, _num_cropped(survey, proposal.settings), budget, str(where), commands)


def show(result: Plan) -> None:
    """Print a plan for people: the cohort, the proposal with its memory, and the commands."""
    survey = result.survey
    summary, outliers = survey.summary(), survey.outliers
    table = Table("R x A x S" if survey.spatial_dims == 3 else "rows x columns", "5 %", "median", "95 %")
    for name, key in (("size", "size"), ("spacing (mm)", "spacing_mm"), ("field (mm)", "field_mm")):
        table.add_row(name, *(" x ".join(f"{v:g}" for v in summary[key][p]) for p in ("p5", "p50", "p95")))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{len(survey.ids)} scans, {len(survey.failures)} that cannot be used")
    console.print(table)
    if outliers:
        console.print(f"{len(outliers)} unlike the others by a factor of two: {_listed(outliers)}")
    for failure in survey.failures[:_LISTED]:
        console.print(f"failed: {failure.case_id}: {failure.reason}")
    for key, value in result.proposal.settings.items():
        console.print(f"{key}: {value}")
    if result.num_cropped:
        console.print(f"{result.num_cropped} scans are larger than this grid and would be cropped")
    console.print(
        f"predicted memory {result.proposal.memory.gib:.2f} GiB of {result.budget / GIB:.2f} GiB on {result.device}"
    )
    for command in result.commands:
        console.print(command)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


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


def _config(bundle: str | os.PathLike[str]) -> ConfigParser:
    folder = Path(bundle) if Path(bundle).is_dir() else shipped_bundle(str(bundle))
    file = folder / "configs" / "train.json"
    if not file.is_file():
        raise ConfigError(f"{folder.name}: there is no configs/train.json; name a bundle's folder")
    parser = ConfigParser()
    parser.read_config(str(file))
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
    settings: Mapping[str, Any],
) -> list[str]:
    commands, root = [], str(bundle)
    if not Path(bundle).is_dir():
        root = "my_bundle"
        commands.append(shlex.join(["monai-diffae", "init", root, "--bundle", str(bundle)]))
    words = ["monai-diffae", "train", "--bundle", root, "--cohort", os.fspath(cohort)]
    for word, name in columns.items():
        words += ["--column", f"{word}={name}"]
    for key, value in settings.items():
        words += ["--set", f"{key}={_as_typed(value)}"]
    return [*commands, shlex.join(words)]


def _as_typed(value: Any) -> str:
    return str(value).replace(" ", "").lower() if isinstance(value, (bool, list)) else str(value)
