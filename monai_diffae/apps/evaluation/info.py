"""The command ``info``: what a trained bundle is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult


@dataclass(frozen=True)
class InfoResult(CommandResult):
    """The result of :func:`info`.

    Attributes:
        summary: properties of the bundle by name, such as ``image_size``, ``parameters``, ``steps`` and ``sha256``.
    """

    summary: dict[str, Any]

    def lines(self) -> Iterator[str]:
        """One line per property."""
        yield from (f"{name}: {value}" for name, value in self.summary.items())

    def figures(self) -> dict[str, Any]:
        """The properties."""
        return self.summary


@command
def info(bundle: Path) -> InfoResult:
    """Show a trained bundle: its images, size, decoding settings and checksum.

    Args:
        bundle: Folder of a trained bundle.

    Returns:
        The properties.

    Raises:
        ConfigError: the bundle is not trained.

    Example:
        >>> info("my_model")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_model: there is no models/model.pt; train the bundle first, or ...
    """
    from monai_diffae.bundle.loading import bundle_summary

    return InfoResult(bundle_summary(bundle))
