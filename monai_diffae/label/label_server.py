"""The command ``label-server``: serve an app of ``label-app`` to 3D Slicer, OHIF and other clients of MONAI Label."""

from __future__ import annotations

import logging
import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)

_END_AFTER_S = 5


@command
def label_server(
    app: Path,
    studies: str,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Ge(1), Le(65535)] = 8000,
    modality: str | None = None,
) -> CommandResult:
    """Serve an app to 3D Slicer, OHIF and other clients of MONAI Label, until Ctrl-C.

    The server has no passwords. By default, only programs on this machine can reach it; ``host`` changes that. OHIF
    works only with port 8000. The log, without names and ids, is ``logs/app.log`` in the app's folder.

    Args:
        app: Folder of an app, made with ``monai-diffae label-app``.
        studies: Folder of scans, or URL of a DICOMweb server such as ``http://127.0.0.1:8042/dicom-web``. The server
            writes the labels and its list of images into the folder.
        host: Address to listen on.
        port: Port to listen on.
        modality: With a DICOMweb server: list only series of this modality, such as ``MR``. Default: all
            series of images.

    Returns:
        Nothing, when the server has ended.

    Raises:
        ConfigError: MONAI Label is not installed, the folders do not exist, or the bundle cannot be loaded.
        UnsafeInputError: the app or its bundle has code of its own, and is not trusted.
        MachineError: the port is in use, or the DICOMweb server cannot be reached.

    Example:
        >>> label_server("no_app", "scans")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_app: is not an app folder; make one with monai-diffae label-app
    """
    from monai_diffae.label.app_folder import AppFolder
    from monai_diffae.serving.server import LOOPBACK, check_port

    folder = AppFolder(app)
    folder.settings()
    folder.check_code()
    is_url = studies.startswith(("http://", "https://"))
    if not is_url and not Path(studies).is_dir():
        raise ConfigError(f"studies: {Path(studies).name} is not a folder; give a folder of scans or a DICOMweb URL")
    if find_spec("monailabel") is None:
        raise ConfigError("monailabel is not installed; run pip install 'monai-diffae[label]'")
    check_port(host, port)
    if host not in LOOPBACK:
        logger.warning(
            "host: everyone who can reach %s can read the scans and replace labels, because there is no password", host
        )
    _serve(folder.path, studies if is_url else str(Path(studies).resolve()), host, port, modality)
    return CommandResult()


def _serve(app: Path, studies: str, host: str, port: int, modality: str | None) -> None:
    from monai_diffae.label.app_folder import AppFolder
    from monai_diffae.label.asgi import build_app
    from monai_diffae.label.logs import set_up_logging
    from monai_diffae.label.server_settings import apply_settings, settings_for
    from monai_diffae.serving.server import LOOPBACK, serve

    apply_settings(settings_for(app, studies, port, modality))
    set_up_logging(AppFolder(app).log_file)
    from monailabel.interfaces.utils.app import app_instance

    app_instance()  # here, so that an error ends the command with its one line
    application = build_app(loopback_only=host in LOOPBACK)

    def announce() -> None:
        logger.info("serving at http://%s:%d (Ctrl-C ends the server)", host, port)

    serve(application, host, port, announce, end_after_s=_END_AFTER_S)
    _abandon_requests()


def _abandon_requests() -> None:
    """End the process if a request is still computing in a thread, which Python would wait for."""
    if any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
        logger.info("the server has ended; what was still running was aborted")
        logging.shutdown()
        os._exit(0)
