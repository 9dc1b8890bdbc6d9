"""The command ``export``: a bundle's networks as files that run without this package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from monai_diffae.apps.command import command
from monai_diffae.apps.results import FolderResult


@dataclass(frozen=True)
class ExportResult(FolderResult):
    """The result of :func:`export`.

    Attributes:
        networks: for each file by its name: ``bytes``, ``size_is_free``, and ``largest_difference`` from the network
            as a share of its largest output.
        skipped: whether the files existed already.
    """

    networks: dict[str, dict[str, Any]]
    skipped: bool = False

    def lines(self) -> Iterator[str]:
        """The size and the difference of each file, then the folder."""
        for name, figures in self.networks.items():
            size = "" if figures["size_is_free"] else ", for one image size only"
            yield (
                f"{name}: {figures['bytes'] / 1e6:.1f} MB, largest difference {figures['largest_difference']:.1e} of "
                f"the largest output{size}"
            )
        yield from super().lines()

    def figures(self) -> dict[str, Any]:
        """The folder and the figures of each file."""
        return {**super().figures(), "networks": self.networks}


@command
def export(
    bundle: Path, out: Path, *, format: Literal["pt2", "onnx", "ts"] = "pt2", overwrite: bool = False
) -> ExportResult:
    """Write the networks of a trained bundle as files that run without this package.

    The files are ``encoder`` and ``denoiser``, with the format as suffix. A model in latent mode also has
    ``first_stage_encoder`` and ``first_stage_decoder``; a first stage (``autoencoder_kl_3d``) has only these two. They
    take any batch size, and any image size that the network takes. Each file is loaded again and compared with the
    network at two batch sizes and two image sizes. If it differs by more than 0.0001 of the largest output, it is
    removed, and the command fails. ``networks.json`` says how to use the files: shapes, axes, value range,
    spacing, preprocessing, noise levels and checksums.

    Args:
        bundle: Folder of a trained bundle.
        out: Folder for the files.
        format: ``pt2`` is read by ``torch.export.load``, ``onnx`` by ONNX Runtime, ``ts`` by ``torch.jit.load``. Use
            ``ts`` (TorchScript) only for tools that read nothing else, because PyTorch and MONAI will remove it.
        overwrite: Replace existing results.

    Returns:
        The folder, and the size and the difference of each file.

    Raises:
        ConfigError: the bundle is not trained, or one of its networks cannot be exported to this format.
        MachineError: packages for ONNX are not installed, or the folder cannot be written.

    Example:
        >>> export("my_model", "exported")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_model: there is no models/model.safetensors; train the bundle first, ...
    """
    from monai_diffae.apps.training.exported_networks import export_networks

    networks, skipped = export_networks(bundle, out, format, overwrite=overwrite)
    return ExportResult(out, networks, skipped)
