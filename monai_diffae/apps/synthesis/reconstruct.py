"""The command ``reconstruct``: encode and decode the cases of a cohort."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult, failed_cases, remove_images, run_once
from monai_diffae.apps.settings import Choice, Decoding, Reading, Run, Seed
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)

Mode = Literal["x_T", "z_sem", "both"]
Grid = Literal["native", "model"]


@dataclass(frozen=True)
class ReconstructResult(CommandResult):
    """The result of :func:`reconstruct`.

    Attributes:
        folder: holds the images in one folder per mode, ``reconstructions.csv`` and ``mosaic.png``.
        means: the mean of each numeric column of the table, such as ``mse_x_T``.
        num_cases: rows of the table.
        num_failed: cases that could not be used, listed in ``failures.csv``.
        skipped: whether the results were complete already.
    """

    folder: Path
    means: dict[str, float]
    num_cases: int
    num_failed: int
    skipped: bool = False

    def lines(self) -> Iterator[str]:
        """The means, then the folder."""
        yield from (f"{name} {value:.6g}" for name, value in self.means.items())
        yield str(self.folder)

    def figures(self) -> dict[str, Any]:
        """The means and the number of cases."""
        return {"num_cases": self.num_cases, "means": self.means}

    @property
    def incomplete(self) -> str | None:
        """How many cases failed."""
        return failed_cases(self.num_failed, self.num_cases)


@command
def reconstruct(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    mode: Mode = "x_T",
    grid: Grid = "native",
    dicom: bool = False,
    seed: Seed = 0,
    choice: Choice = Choice(),
    decoding: Decoding = Decoding(),
    reading: Reading = Reading(),
    run: Run = Run(),
) -> ReconstructResult:
    """Encode and decode cases: images in the scan's own space, a table of errors, a mosaic.

    ``out/<mode>/<id>`` are images in the scan's own space: its shape, affine, units and, for NIfTI, data type. They
    have the model's resolution, and the scan's lowest value outside the model's field of view. Cases that are PNG or
    JPEG become PNG, all others NIfTI. ``reconstructions.csv`` has one row per case, measured in the model's grid and
    range: ``id``; ``mse``, ``psnr`` and ``ssim`` of each mode; the mean, standard deviation and neighbor correlation
    of the inverted ``x_T`` (0, 1 and 0 for perfect noise); and ``field_share``, the share of the scan's voxels in the
    field of view. In latent mode it also has the errors of the first stage alone. ``mosaic.png`` shows the first 8
    cases (volumes in three planes): the whole scan with the field of view, if that is smaller; input; decoded from
    z_sem alone; decoded from both codes.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        mode: ``x_T`` decodes with the inverted x_T of the case (near-exact), ``z_sem`` with Gaussian noise, ``both``
            does both.
        grid: ``native`` writes images in the scan's own space; ``model`` in the model's grid and range (float32
            NIfTI or 8-bit PNG), which also works if the preprocessing cannot be inverted.
        dicom: Also write DICOM cases as new series of the same study, ``out/<mode>/dicom/<id>``. They contain the
            patient's name, as their sources do.
        seed: Random seed of the noise in mode ``z_sem``, a function of the seed and the case's id.
        choice: Which cases.
        decoding: How to invert and decode.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The folder, the mean errors and the number of cases.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained, or ``out`` holds results of other inputs.
        CohortError: there is no usable case.

    Example:
        >>> reconstruct("bundle", "cohort.csv", "out", mode="z")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: mode: 'z' is not one of x_T, z_sem, both
    """
    if dicom and grid == "model":
        raise ConfigError("dicom: DICOM series are written in the scan's own space; use grid native")
    from monai_diffae.apps.session import Session
    from monai_diffae.apps.synthesis.reconstruction import MODES, Reconstruction

    session = Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run)
    cases = session.choose(choice)
    made_from = session.made_from(cases, mode=mode, grid=grid, dicom=dicom, seed=seed)
    modes = MODES if mode == "both" else (mode,)
    table, mosaic = out / "reconstructions.csv", out / "mosaic.png"
    results = [table, mosaic, *(out / name for name in modes)]

    def make() -> Mapping[str, Any]:
        read = session.read(cases, out, named=bool(choice.cases))
        for name in MODES:
            remove_images(out / name)
        means = Reconstruction(session, out, modes, grid, dicom, seed).run(read, table, mosaic)
        return {"means": means, "num_cases": len(read.cases), "num_failed": len(read.failures)}

    figures, skipped = run_once(out / "reconstructions.json", results, made_from, make, overwrite=run.overwrite)
    return ReconstructResult(out, figures["means"], figures["num_cases"], figures["num_failed"], skipped)
