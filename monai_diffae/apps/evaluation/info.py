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
            ``own_code`` lists the bundle's own code; ``files`` has the checksums of its configurations.
    """

    summary: dict[str, Any]

    @property
    def was_run(self) -> bool:
        """Whether the model was built; not if the bundle has code of its own that is not trusted, or has no weights."""
        return "parameters" in self.summary

    def lines(self) -> Iterator[str]:
        """One line per property, file and part of the bundle's own code."""
        for name, value in self.summary.items():
            if name == "own_code":
                yield from (f"own code: {part}" for part in value or ["none"])
            elif name == "files":
                yield from (f"{file}: sha256 {checksum}" for file, checksum in value.items())
            else:
                yield f"{name}: {value}"
        if not self.was_run:
            yield "nothing was run; if you trust the author of this code, add --trust"

    def figures(self) -> dict[str, Any]:
        """The properties."""
        return self.summary


@command
def info(bundle: Path) -> InfoResult:
    """Show a trained bundle: its images, size, decoding settings, own code and checksums.

    Own code is everything in the bundle's configurations that would call, evaluate or import something that this
    package's own configurations do not, or write or send to places outside of the bundle. Nothing of such a bundle is
    run without ``--trust``, neither by this command nor by others.

    Args:
        bundle: Folder of a trained bundle.

    Returns:
        The properties.

    Raises:
        ConfigError: the bundle is not trained, or a configuration cannot be read.

    Example:
        >>> info("my_model")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_model: there is no models/model.pt; train the bundle first, or ...
    """
    from monai_diffae.bundle.summary import bundle_summary

    return InfoResult(bundle_summary(bundle))
