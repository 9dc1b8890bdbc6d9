"""The parts of a plan: memory, configuration, speed and command lines."""

# tested in tests/apps/training/test_plan.py

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from monai_diffae.apps.training.proposals import Proposal
from monai_diffae.apps.training.speed import Speed, measure_speed
from monai_diffae.bundle.config_values import check_device, check_dimensions
from monai_diffae.bundle.folders import shipped_bundle
from monai_diffae.bundle.loading import build
from monai_diffae.data.cases import Case
from monai_diffae.data.cohort_split import SplitCohort
from monai_diffae.data.survey import Survey
from monai_diffae.data.twin_reports import TwinReport, report_twins
from monai_diffae.data.twins import find_twins
from monai_diffae.engines.memory import GIB, free_memory
from monai_diffae.errors import ConfigError, MachineError

_USABLE = 0.8  # usable fraction of the free memory


def find_device(device: str | None) -> torch.device:
    """The device with this name, whether or not this machine has it; None: the GPU if there is one, else the CPU.

    Raises:
        ConfigError: there is no such kind of device.
    """
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"device: there is no {device!r}; choose cpu or cuda") from error


def memory_budget(memory_gib: float | None, device: torch.device) -> int:
    """Bytes that training may use: ``memory_gib``, or else 80 % of the device's free memory.

    Raises:
        MachineError: this machine does not have the device, or its free memory is unknown.
    """
    if memory_gib is not None:
        return int(memory_gib * GIB)
    check_device(device)
    free = free_memory(device)
    if free is None:
        raise MachineError(f"memory_gib: the free memory of {device} is unknown on this machine; give a value")
    return int(_USABLE * free)


def read_training_config(bundle: Path, overlays: Sequence[Path]) -> ConfigParser:
    """A bundle's ``train.json`` with overlays.

    Args:
        bundle: a bundle's folder, or the name of a shipped bundle.
        overlays: configuration files that replace values, in this order.

    Raises:
        ConfigError: a file does not exist, or an overlay is for a bundle with other dimensions.
    """
    folder = bundle if bundle.is_dir() else shipped_bundle(str(bundle))
    file = folder / "configs" / "train.json"
    if not file.is_file():
        raise ConfigError(f"{folder.name}: there is no configs/train.json; give a bundle's folder")
    for overlay in overlays:
        if not overlay.is_file():
            raise ConfigError(f"overlays: there is no file {overlay.name}; the bundle's configs/overlays has some")
    parser = ConfigParser()
    parser.read_config([str(file), *map(str, overlays)])
    check_dimensions(parser.get())
    return parser


def measured_speed(parser: ConfigParser, survey: Survey, proposal: Proposal, device: torch.device) -> Speed:
    """The speed of training with a proposal on this machine.

    Args:
        parser: the configuration, with the proposal's values and the cohort.
        survey: of the cohort.
        proposal: what to train with.
        device: where.

    Raises:
        MachineError: this machine does not have the device, or enough memory.
    """
    check_device(device)
    free = free_memory(device)
    if free is not None and proposal.memory.total > free:
        raise MachineError(
            f"measure: the proposal needs {proposal.memory.gib:.2f} GiB, and {free / GIB:.2f} GiB are free on "
            f"{device}; omit measure, or set a smaller memory_gib"
        )
    failed = {failure.case_id for failure in survey.failures}
    cases = build(parser, "cohort", SplitCohort).split("train")
    return measure_speed(parser.get(), device, sum(case.id not in failed for case in cases))


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
    commands, folder = [], str(bundle)
    if not bundle.is_dir():
        folder = "my_bundle"
        commands.append(shlex.join(["monai-diffae", "init", folder, "--bundle", str(bundle)]))
    words = ["monai-diffae", "train", folder, str(cohort)]
    options = {
        "--overlays": [str(overlay) for overlay in overlays],
        "--columns": [f"{word}={name}" for word, name in columns.items()],
        "--overrides": [f"{key}={_as_typed(value)}" for key, value in settings.items()],
    }
    for option, values in options.items():
        words += [option, *values] if values else []
    return [*commands, shlex.join(words)]


def _as_typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
