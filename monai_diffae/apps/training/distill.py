"""The command ``distill``: train a decoder with 1 to 8 network evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.settings import Training
from monai_diffae.apps.training.train import TrainResult, run_training


@command
def distill(
    bundle: Path,
    cohort: Path,
    out: Path | None = None,
    *,
    steps: Annotated[int, Ge(1), Le(8)] | None = None,
    training: Training = Training(),
) -> TrainResult:
    """Train a bundle's fast decoder, or resume its training after an interruption.

    It gives nearly the same images as the bundle's own decoder, with few network evaluations. Encoding and inversion
    do not change. ``reconstruct``, ``edit``, ``generate`` and the other commands that make images use it with
    ``--decoder fast``. It starts from the bundle's decoder, and learns from the cohort's scans with their codes, and
    from mixed codes. The model is written to ``models/fast_model.safetensors``, the curves to the folder ``fast``.

    Args:
        bundle: Folder of a trained bundle.
        cohort: The cohort on which the bundle was trained: folder, CSV/TSV or MONAI datalist.
        out: Folder for the results and a copy of the autoencoder; by default the bundle's own.
        steps: Network evaluations of the fast decoder, 1 to 8; by default the bundle's: 4.
        training: How to train.

    Returns:
        The folder of the bundle and the number of cases that could not be used.

    Raises:
        ConfigError: the bundle is not trained, or a key or value of the configuration cannot be used.
        CohortError: no usable case for training or validation.

    Example:
        >>> distill("no_such_bundle", "cohort.csv")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_such_bundle: there is no models/model.safetensors; train the bundle ...
    """
    from monai_diffae.apps.command_lines import command_line
    from monai_diffae.bundle.model_file import checksum

    checksum(bundle)  # raises an error if the bundle is not trained
    run = run_training("distill", bundle, training, {"dataset_dir": cohort, "output_dir": out}, values={"steps": steps})
    read = run.workflow.parser.get_parsed_content("teaching_cases")
    num_cases = len(read.cases) + len(read.failures)
    next_line = command_line(
        "reconstruct", {"bundle": run.folder, "cohort": cohort, "out": "reconstructed", "decoder": "fast"}
    )
    failures = run.folder / "fast" / "failures.csv"
    return TrainResult(run.folder, failures, len(read.failures), num_cases, next_line, training.strict)
