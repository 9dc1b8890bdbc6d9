"""The command ``label-app``: make a MONAI Label app from a trained bundle."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from monai_diffae import bundle as bundles
from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result
from monai_diffae.apps.study.predict import PREDICTOR
from monai_diffae.bundle.folders import check_new_folder, init_bundle, new_folder
from monai_diffae.data.atomic import write_json
from monai_diffae.errors import ConfigError, DiffAEError

_COPY = "bundle"
_MAIN = '''"""A MONAI Label app that serves the diffusion autoencoder named in settings.json."""

from monai_diffae.label import DiffAEApp

__all__ = ["DiffAEApp"]
'''


class AppFolder:
    """The folder of an app.

    It holds ``main.py``, which MONAI Label imports, ``settings.json``, which names the bundle and the device, the
    bundle, directions for edits, and what the server writes: the embedding index, trainings and logs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.directions = path / "directions"  #: files of ``monai-diffae fit-direction``, for the task ``diffae_edit``
        self.predictor = path / PREDICTOR  #: a file of ``monai-diffae predict``, for the task ``diffae_predict``
        self.index = path / "index"  #: the embedding index
        self.training = path / "training"  #: the folder in which the server trains
        self.log_file = path / "logs" / "app.log"  #: the server's log

    def settings(self) -> dict[str, Any]:
        """The content of ``settings.json``."""
        try:
            (self.path / "main.py").stat()  # an OSError if it is missing
            settings = json.loads((self.path / "settings.json").read_text(encoding="utf-8"))
            return {"bundle": str(settings["bundle"]), "device": settings.get("device")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            wrong = "is not an app folder, whose settings.json names a bundle"
            raise ConfigError(f"{self.path.name}: {wrong}; make one with monai-diffae label-app") from error

    @property
    def bundle(self) -> Path:
        """The folder of the bundle that the app serves."""
        return self.path / self.settings()["bundle"]  # an absolute path replaces the folder

    @property
    def owns_its_bundle(self) -> bool:
        """Whether the app serves its own copy, which training may replace."""
        return self.bundle == self.path / _COPY


@command
def label_app(out: Path, *, bundle: Path, refer: bool = False) -> Result:
    """Make a MONAI Label app that serves a trained bundle.

    The app's folder holds a copy of the bundle. Training on the server changes this copy only. To let annotators edit
    scans, put files of ``monai-diffae fit-direction`` into its subfolder ``directions``; to show them predicted labels,
    put a ``predictor.safetensors`` of ``monai-diffae predict`` beside it. Start the server with
    ``monai-diffae label-server``.

    Args:
        out: New folder for the app.
        bundle: Folder of a trained bundle.
        refer: Use the bundle itself instead of a copy. The server then refuses to train.

    Returns:
        The folder, how to start the server, and how to calibrate the bundle if it is not.

    Raises:
        ConfigError: the bundle is not trained, or ``out`` is not empty or cannot be a folder.
        UnsafeInputError: the bundle has code of its own and is not trusted.
        MachineError: the folder cannot be written.
    """
    check_new_folder(out)
    # unsafe files are refused before they are copied
    bundles.AnomalyDetector.load_if_usable(bundles.load_bundle(bundle, "cpu"))
    with new_folder(out) as folder:
        (folder / "main.py").write_text(_MAIN, encoding="utf-8")
        AppFolder(folder).directions.mkdir()
        if not refer:
            init_bundle(folder / _COPY, bundle)
        write_json(folder / "settings.json", {"bundle": str(bundle.resolve()) if refer else _COPY})
    app = AppFolder(out)
    try:
        bundles.AnomalyDetector.load(bundles.load_bundle(app.bundle, "cpu"), str(app.bundle))
        advice = []
    except DiffAEError as error:
        advice = [f"diffae_anomaly cannot be used yet. {error}"]
    start = f"start the server with: monai-diffae label-server {app.path} STUDIES"
    return Result(app.path, next=[start, "STUDIES is a folder of scans, or the URL of a DICOMweb server", *advice])


def silence_monai_label() -> None:
    """Keep MONAI Label from logging requests, ids and paths, in the server and in its jobs."""
    for name in ("monailabel", "dicomweb_client", "__main__"):  # a job is started as MONAI Label's module
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("timeloop").disabled = True  # it sets its own level
    logging.getLogger("ignite").setLevel(logging.WARNING)
