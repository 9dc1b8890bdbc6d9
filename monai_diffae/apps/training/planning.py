"""The parts of a plan: memory, configuration, speed and command lines."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from monai_diffae.apps.command import check_overlays
from monai_diffae.apps.command_lines import command_line
from monai_diffae.apps.training.proposals import Machine
from monai_diffae.apps.training.speed import Speed, measure_speed
from monai_diffae.apps.training.timed_plans import TimedProposal, propose_in_time
from monai_diffae.apps.training.timetables import CHOSEN_KEYS, Work
from monai_diffae.bundle.code import Parser, read_config
from monai_diffae.bundle.config import build, check_device, check_dimensions
from monai_diffae.bundle.folders import shipped_bundle
from monai_diffae.data.cases import Case
from monai_diffae.data.cohort_split import SplitCohort
from monai_diffae.data.survey import Survey
from monai_diffae.data.twin_reports import TwinReport, report_twins
from monai_diffae.data.twins import find_twins
from monai_diffae.engines.memory import GIB, free_memory
from monai_diffae.errors import CohortError, ConfigError, MachineError, quoted

_USABLE = 0.8  # usable fraction of the free memory
MEASURED_SCANS = 3
_TIMED_KEYS = (*CHOSEN_KEYS, "picture_steps")


def find_device(device: str | None) -> torch.device:
    """The device with this name, whether or not this machine has it; None: the GPU if there is one, else the CPU."""
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"device: there is no {quoted(device)}; choose cpu or cuda") from error


def memory_budget(memory_gib: float | None, device: torch.device) -> int:
    """Bytes that training may use: ``memory_gib``, or else 80 % of the device's free memory."""
    if memory_gib is not None:
        return int(memory_gib * GIB)
    check_device(device)
    free = free_memory(device)
    if free is None:
        raise MachineError(f"memory_gib: the free memory of {device} is unknown on this machine; give a value")
    return int(_USABLE * free)


def available(budget: int, device: torch.device) -> int:
    """A budget of bytes, or the device's free memory if that is less."""
    free = free_memory(device)
    return budget if free is None else min(budget, free)


def read_training_config(bundle: Path, overlays: Sequence[Path]) -> ConfigParser:
    """A bundle's ``train.json`` with overlays; ``bundle`` may also be the name of a shipped bundle."""
    folder = bundle if bundle.is_dir() else shipped_bundle(str(bundle))
    file = folder / "configs" / "train.json"
    if not file.is_file():
        raise ConfigError(
            f"{folder.name}: there is no configs/train.json; give the folder of a bundle that monai-diffae init made"
        )
    check_overlays(overlays)
    parser = read_config(file, *overlays)
    check_dimensions(parser.get())
    return parser


def has_device(device: torch.device) -> bool:
    """Whether this machine has a device."""
    try:
        check_device(device)
    except MachineError:
        return False
    return True


def timed_proposal(parser: ConfigParser, survey: Survey, machine: Machine, seconds: float) -> TimedProposal:
    """The finest training that ends within some seconds on this machine and uses z_sem."""
    failed = {failure.case_id for failure in survey.failures}
    config = parser.get()
    cohort = build(Parser(copy.deepcopy(config)), "cohort", SplitCohort)  # parsing changes a configuration
    train, val = ([case for case in cohort.split(name) if case.id not in failed] for name in ("train", "val"))
    items = [case.item() for case in train[:MEASURED_SCANS]]
    for name, usable in (("train", train), ("val", val)):
        if not usable:
            cohort.items(name)  # raises the error of an empty split
            raise CohortError(
                f"no scan in the split '{name}' can be read: {survey.failures[0].reason}; plan --check lists all"
            )

    def measure(settings: Mapping[str, Any]) -> Speed:
        measured = Parser(copy.deepcopy(config))
        measured.update(dict(settings))
        return measure_speed(
            measured.get(), machine.device, items, max(1, min(int(settings["batch_size"]), len(train)))
        )

    timed = {key: machine.value(key) for key in _TIMED_KEYS if key in parser}
    num_labels = len({name for case in train for name in case.labels})
    work = Work(len(train), len(val), timed, machine.overrides, num_labels)
    threads = torch.get_num_threads()
    try:
        return propose_in_time(machine, survey, work, measure, seconds)
    finally:
        torch.set_num_threads(threads)


def twins_in(cases: Sequence[Case], survey: Survey) -> TwinReport:
    """The twins among the cases of a cohort whose scans were read completely."""
    read = [case for case in cases if case.id in survey.fingerprints]
    groups = find_twins([survey.fingerprints[case.id] for case in read], [case.patient for case in read])
    return report_twins(read, groups)


def count_cropped(survey: Survey, settings: Mapping[str, Any]) -> int:
    """The number of volumes that are larger than the grid along an axis; 0 for images, which are resized."""
    if "spacing_mm" not in settings:
        return 0
    grid_mm = np.array(settings["image_size"]) * np.array(settings["spacing_mm"])
    half_voxel_mm = np.array(settings["spacing_mm"]) / 2
    return int((survey.fields_mm > grid_mm + half_voxel_mm).any(axis=1).sum())


def command_lines(
    bundle: Path, cohort: Path, columns: Mapping[str, str], overlays: Sequence[Path], settings: Mapping[str, Any]
) -> list[str]:
    """Lines for a shell: ``init`` if the bundle is a shipped one, and ``train`` with these settings.

    Example:
        >>> command_lines(Path("diffae_2d"), Path("scans"), {}, [], {"image_size": [64, 64]})[1]
        "monai-diffae train my_bundle scans --overrides 'image_size=[64,64]'"
    """
    is_shipped = not bundle.is_dir()
    folder = "my_bundle" if is_shipped else str(bundle)
    training = {
        "bundle": folder, "cohort": cohort, "overlays": list(overlays), "columns": columns, "overrides": settings,
    }  # fmt: skip
    init = [command_line("init", {"out": folder, "bundle": bundle})] if is_shipped else []
    return [*init, command_line("train", training)]
