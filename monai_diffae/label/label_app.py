"""The command ``label-app``: make a MONAI Label app from a trained bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from monai_diffae.apps.command import command
from monai_diffae.apps.results import FolderResult
from monai_diffae.errors import DiffAEError


@dataclass(frozen=True)
class AppResult(FolderResult):
    """The result of :func:`label_app`: the folder, and how to start the server.

    Attributes:
        not_calibrated: why the task ``diffae_anomaly`` cannot be used, and what to do; None if it can.
    """

    not_calibrated: str | None = None

    def lines(self) -> Iterator[str]:
        """The folder, the command that starts the server, and how to calibrate the bundle if it is not."""
        yield from super().lines()
        yield f"start the server with: monai-diffae label-server {self.folder} STUDIES"
        yield "STUDIES is a folder of scans, or the URL of a DICOMweb server"
        if self.not_calibrated:
            yield f"diffae_anomaly cannot be used yet. {self.not_calibrated}"


@command
def label_app(out: Path, *, bundle: Path, refer: bool = False) -> AppResult:
    """Make a MONAI Label app that serves a trained bundle.

    The app's folder holds a copy of the bundle. Training on the server changes this copy only. To let annotators edit
    scans, put files of ``monai-diffae fit-direction`` into its subfolder ``directions``. Start the server with
    ``monai-diffae label-server``.

    Args:
        out: New folder for the app.
        bundle: Folder of a trained bundle.
        refer: Use the bundle itself instead of a copy. The server then refuses to train.

    Returns:
        The folder, and whether the bundle must be calibrated.

    Raises:
        ConfigError: the bundle is not trained, or ``out`` is not empty or cannot be a folder.
        MachineError: the folder cannot be written.

    Example:
        >>> label_app("my_app", bundle="no_model")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_model: there is no models/model.safetensors; train the bundle first, ...
    """
    from monai_diffae.bundle import AnomalyDetector, load_bundle
    from monai_diffae.label.app_folder import make_app_folder

    app = make_app_folder(out, bundle, refer=refer)
    try:
        AnomalyDetector.load(load_bundle(app.bundle, "cpu"), str(app.bundle))
    except DiffAEError as error:
        return AppResult(app.path, str(error))
    return AppResult(app.path)
