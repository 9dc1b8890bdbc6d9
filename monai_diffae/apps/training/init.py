"""The command ``init``: copy a shipped bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from monai_diffae.apps.command import command
from monai_diffae.apps.results import FolderResult


@dataclass(frozen=True)
class InitResult(FolderResult):
    """The result of :func:`init`.

    Attributes:
        folder: the new folder.
        has_weights: whether the bundle is trained.
    """

    has_weights: bool = False

    def lines(self) -> Iterator[str]:
        """The folder and the next command."""
        from monai_diffae.apps.command_lines import command_line

        yield from super().lines()
        cohort = {"bundle": self.folder, "cohort": "scans.csv"}
        if self.has_weights:
            yield f"next: {command_line('embed', {**cohort, 'out': 'results'})}"
        else:
            yield f"next: {command_line('train', {**cohort, 'minutes': 10})}"


@command
def init(out: Path, *, bundle: str = "diffae_2d") -> InitResult:
    """Copy a shipped bundle into a new folder: an untrained one to train, or one with weights to use at once.

    The folder gets the bundle's configurations, its documentation and licence, and in ``configs/overlays`` the
    configuration overlays that can be used with it. ``chest_xray`` and ``hippocampus`` have trained weights;
    their ``docs/README.md`` says what the weights can do and what they must not be used for. ``train`` fine-tunes them.

    Args:
        out: New folder for the bundle.
        bundle: Name of a shipped bundle: ``diffae_2d``, ``diffae_3d`` or ``autoencoder_kl_3d`` without weights,
            ``chest_xray`` or ``hippocampus`` with weights.

    Returns:
        The folder.

    Raises:
        ConfigError: no bundle has this name, or ``out`` is not empty or cannot be a folder.
        MachineError: the folder cannot be written.

    Example:
        >>> init("my_model", bundle="diffae_4d")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: bundle: there is no 'diffae_4d'; choose one of: autoencoder_kl_3d, ...
    """
    from monai_diffae.bundle.folders import init_bundle, names_with_weights

    folder, has_weights = init_bundle(out, bundle), bundle in names_with_weights()
    if has_weights:
        from monai_diffae.bundle.anomaly_calibration import complete_calibration

        complete_calibration(folder)
    return InitResult(folder, has_weights)
