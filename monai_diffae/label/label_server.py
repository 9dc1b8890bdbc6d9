"""The command ``label-server``: serve an app of ``label-app`` to 3D Slicer, OHIF and other clients of MONAI Label."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result
from monai_diffae.errors import ConfigError, check_installed
from monai_diffae.label.label_app import AppFolder, silence_monai_label
from monai_diffae.lazy import on_first_use

with on_first_use:
    from monai_diffae.serving import server

logger = logging.getLogger(__name__)

_END_AFTER_S = 5
# jobs read the list of images, but do not write it: a job could replace a list to which the server has added a label
_FOR_JOBS = {"MONAI_LABEL_DATASTORE_READ_ONLY": "true", "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false"}
_FIXED = {"MONAI_LABEL_APP_DIR", "MONAI_LABEL_STUDIES", "MONAI_LABEL_SERVER_PORT", "PATH", *_FOR_JOBS}


@command
def label_server(
    app: Path,
    studies: str,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Ge(1), Le(65535)] = 8000,
    modality: str | None = None,
) -> Result:
    """Serve an app to 3D Slicer, OHIF and other clients of MONAI Label, until Ctrl-C.

    The server has no passwords. By default, only programs on this machine can reach it; ``host`` changes that. OHIF
    works only with port 8000. The log is ``logs/app.log`` in the app's folder.

    Args:
        app: Folder of an app, made with ``monai-diffae label-app``. Its ``main.py`` is run.
        studies: Folder of scans, or URL of a DICOMweb server such as ``http://127.0.0.1:8042/dicom-web``. The server
            writes the labels and its list of images into the folder.
        host: Address to listen on.
        port: Port to listen on.
        modality: With a DICOMweb server: list only series of this modality, such as ``MR``. Default: all
            series of images.

    Returns:
        Nothing, when the server has ended.

    Raises:
        ConfigError: the folders do not exist, or the bundle cannot be loaded.
        UnsafeInputError: the bundle has code of its own, and is not trusted.
        MachineError: MONAI Label is not installed, the port is in use, or the DICOMweb server cannot be reached.
    """
    AppFolder(app).settings()
    is_url = studies.startswith(("http://", "https://"))
    if not is_url and not Path(studies).is_dir():
        raise ConfigError(f"studies: {Path(studies).name} is not a folder; give a folder of scans or a DICOMweb URL")
    check_installed("monailabel", "label")
    server.check_port(host, port)
    if host not in server.LOOPBACK:
        logger.warning("host: everyone who can reach %s can read scans and replace labels: there is no password", host)
    _serve(AppFolder(app.resolve()), studies if is_url else str(Path(studies).resolve()), host, port, modality)
    return Result()


def _serve(folder: AppFolder, studies: str, host: str, port: int, modality: str | None) -> None:
    apply_settings(settings_for(folder.path, studies, port, modality))
    set_up_logging(folder.log_file)
    from monailabel.interfaces.utils.app import app_instance

    from monai_diffae.label.server import build_app

    app_instance()  # here, so that an error ends the command with its one line
    application = build_app(loopback_only=host in server.LOOPBACK)

    def announce() -> None:
        logger.info("serving at http://%s:%d (Ctrl-C ends the server)", host, port)

    server.serve(application, host, port, announce, end_after_s=_END_AFTER_S)
    _abandon_requests()


def _abandon_requests() -> None:
    """End the process if a request is still computing in a thread, which Python would wait for."""
    if any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
        logger.info("the server has ended; what was still running was aborted")
        logging.shutdown()
        os._exit(0)


def settings_for(app: Path, studies: str, port: int, modality: str | None = None) -> dict[str, str]:
    """MONAI Label's environment variables for a server."""
    return {
        "MONAI_LABEL_APP_DIR": str(app),
        "MONAI_LABEL_STUDIES": studies,
        "MONAI_LABEL_SERVER_PORT": str(port),
        # by default CT only
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": modality} if modality else {}),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(app / "dicom"),
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "600",  # by default two hours, in which labels of others do not count
        "MONAI_LABEL_SESSION_PATH": str(app / "sessions"),
        "MONAI_LABEL_DATASTORE_READ_ONLY": "false",
        "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "true",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # MONAI Label (0.8.5) starts no job without it
        "PATH": _path_with_dcmqi(),
    }


def apply_settings(values: Mapping[str, str]) -> None:
    """Set MONAI Label's settings for this process, and for its jobs; other variables that the user has set stay."""
    for name, value in values.items():
        os.environ[name] = value if name in _FIXED else os.environ.get(name, value)
    from monailabel.config import settings

    present = type(settings)()  # MONAI Label may have been imported, and its settings read, before
    for name in type(settings).model_fields:
        setattr(settings, name, getattr(present, name))
    os.environ.update(_FOR_JOBS)


def _path_with_dcmqi() -> str:
    """PATH; with the folder of this Python's programs if only they include ``itkimage2segimage``, for DICOM-SEG."""
    path = os.environ.get("PATH", "")
    programs = str(Path(sys.executable).parent)
    if shutil.which("itkimage2segimage") is None and shutil.which("itkimage2segimage", path=programs) is not None:
        return f"{programs}{os.pathsep}{path}"
    return path


def set_up_logging(file: Path) -> None:
    """Send the log to the terminal and to a file, of which the last four megabytes are kept."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    file.parent.mkdir(parents=True, exist_ok=True)
    root.addHandler(RotatingFileHandler(file, maxBytes=2**20, backupCount=3, encoding="utf-8"))
    for handler in root.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # the loggers task_* repeat each line that a job prints
    for name in ("monai_diffae", "uvicorn.error", "task_train", "task_scoring", "task_batch_infer"):
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.INFO)
    silence_monai_label()
