"""The command ``init``: copy a shipped bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from monai_diffae.apps.command import command
from monai_diffae.apps.results import FolderResult


@dataclass(frozen=True)
class InitResult(FolderResult):
    """The result of :func:`init`."""

    def lines(self) -> Iterator[str]:
        """The folder and the next command."""
        from monai_diffae.apps.command_lines import command_line

        yield from super().lines()
        yield f"next: {command_line('train', {'bundle': self.folder, 'cohort': 'scans.csv', 'minutes': 10})}"


@command
def init(out: Path, *, bundle: str = "diffae_2d") -> InitResult:
    """Copy a shipped bundle into a new folder, as a starting point for your own.

    The folder gets the bundle's configurations, its documentation and licence, and in ``configs/overlays`` the
    configuration overlays that can be used with it.

    Args:
        out: New folder for the bundle.
        bundle: Name of a shipped bundle: ``diffae_2d``, ``diffae_3d`` or ``autoencoder_kl_3d``.

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
    from monai_diffae.bundle.folders import init_bundle

    return InitResult(init_bundle(out, bundle))
