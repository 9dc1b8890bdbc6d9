"""The command ``demo``: sample data, and the first hour with them."""

import logging
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.pages.start import start
from monai_diffae.apps.result import Result
from monai_diffae.apps.training.sample_data import sample_data

logger = logging.getLogger(__name__)


@command
def demo(
    out: Path,
    *,
    num_patients: Annotated[int, Ge(20)] = 3000,
    size: Annotated[int, Ge(8)] = 48,
    minutes: Annotated[float, Gt(0), Le(100_000)] = 10.0,
    device: str | None = None,
) -> Result:
    """Make a virtual cohort, train a small model on it, and show what it learned: ``sample-data``, then ``start``.

    Nothing is downloaded. The same command resumes after an interruption.

    Args:
        out: Folder for the cohort, the model and all results.
        num_patients: Patients of the virtual cohort.
        size: Pixels per side of its images.
        minutes: Duration of the training; the other steps take a few minutes more.
        device: Where to compute, e.g. ``cpu`` or ``cuda:1``; by default the GPU if there is one.

    Returns:
        The folder, and the outcome of each step.

    Raises:
        ConfigError: ``out`` holds a demo with other arguments, or something else.
        MachineError: the package with the template (nilearn) is missing, or the disk is full.
    """
    logger.info("One real template (MNI152) with simulated variation of known strength: these are not patients.")
    cohort = sample_data(out / "cohort", num_patients=num_patients, size=size)
    return start(Path(cohort), out, minutes=minutes, device=device, yes=True)
