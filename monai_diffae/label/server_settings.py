"""MONAI Label's settings for an app of this package."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from monai_diffae.data.scans import SUFFIXES

PATTERNS = [f"*{form}" for suffix in SUFFIXES for form in (suffix, suffix.upper())]
"""The names of files that are images: all that this package reads, ``*.jpeg`` and DICOM included."""

_FOR_JOBS = {"MONAI_LABEL_DATASTORE_READ_ONLY": "true", "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false"}


def settings_for(app: Path, studies: str, port: int, modality: str | None = None) -> dict[str, str]:
    """The environment variables of MONAI Label for a server.

    Args:
        app: the app's folder.
        studies: a folder, or the URL of a DICOMweb server.
        port: the server's port, to which jobs report.
        modality: list only series of this modality, for a DICOMweb server; None: all.

    Example:
        >>> settings_for(Path("app"), "scans", 8000)["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"]
        '{}'
    """
    folder = app.resolve()
    return {
        "MONAI_LABEL_APP_DIR": str(folder),
        "MONAI_LABEL_STUDIES": studies,
        "MONAI_LABEL_SERVER_PORT": str(port),
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(PATTERNS),  # by default without *.jpeg and DICOM
        # by default CT only
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": modality} if modality else {}),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "dicom"),
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "600",  # by default two hours, in which labels of others do not count
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "true",
        "MONAI_LABEL_DATASTORE_READ_ONLY": "false",
        "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "true",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # MONAI Label (0.8.5) starts no job without it
        "PATH": _path_with_dcmqi(),
    }


def apply_settings(values: Mapping[str, str], *, keep: bool = True) -> None:
    """Set MONAI Label's settings for this process and its jobs.

    Jobs beside the server read the list of images, but do not write it: otherwise a job could replace a list to which
    the server has added a label.

    Args:
        values: environment variables.
        keep: whether variables that are set already stay, except those that name the app, the studies and the port.
    """
    fixed = {"MONAI_LABEL_APP_DIR", "MONAI_LABEL_STUDIES", "MONAI_LABEL_SERVER_PORT", "PATH", *_FOR_JOBS}
    for name, value in values.items():
        if name in fixed or not keep:
            os.environ[name] = value
        else:
            os.environ.setdefault(name, value)
    from monailabel.config import settings

    present = type(settings)()  # MONAI Label may have been imported, and its settings read, before
    for name in type(settings).model_fields:
        setattr(settings, name, getattr(present, name))
    os.environ.update(_FOR_JOBS)


def _path_with_dcmqi() -> str:
    """PATH; with the folder of this Python's programs if only they include ``itkimage2segimage``, for DICOM-SEG."""
    path = os.environ.get("PATH", "")
    own = str(Path(sys.executable).parent)
    if shutil.which("itkimage2segimage") is None and shutil.which("itkimage2segimage", path=own) is not None:
        return f"{own}{os.pathsep}{path}"
    return path
