"""The route ``POST /infer/{model}``: MONAI Label's, with checked arguments, in a thread."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, UploadFile
from fastapi.background import BackgroundTasks
from monailabel.config import settings
from monailabel.endpoints.infer import ResultType, run_inference
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from monai_diffae.data.scans import scan_suffix
from monai_diffae.errors import ConfigError
from monai_diffae.label.ids import check_id
from monai_diffae.label.infos import read_object
from monai_diffae.serving.answers import NotFoundError

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))

router = APIRouter(prefix="/infer", tags=["Infer"])

_NO_PARAMS = frozenset({"model", "image", "session", "image_id", "label", "save_label", "label_tag", "description"})


@router.post("/{model}", summary="Run an inference task")
async def infer(
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: ResultType | None = None,
    user: User = _USER,
) -> Any:
    """Run an inference task for an image of the datastore, an uploaded file, or an image of a session."""
    instance = app_instance()
    check_params(params)
    task = instance._infers.get(model)
    if task is not None and not task.makes_image and output in (ResultType.image, ResultType.dicom_seg):
        raise ConfigError(f"output: {model} answers with JSON only; use output=json")
    if label is not None:
        raise ConfigError(f"label: {model} takes no label; omit it")
    if file is not None:
        with _uploaded(file) as session_id:
            return run_inference(background_tasks, model, image, session_id, params, None, None, output)
    if session_id:
        check_id(session_id, "session_id")
        if instance.sessions() is None or instance.sessions().get_session(session_id) is None:
            raise NotFoundError("session_id: there is no such session, or it has expired; upload the scan again")
    else:
        check_id(image)
    return run_inference(background_tasks, model, image, session_id, params, None, None, output)


def check_params(text: str) -> dict[str, Any]:
    """Return the parameters of a request, which a task will check one by one.

    Raises:
        ConfigError: the text is not a JSON object, or names another image.

    Example:
        >>> check_params('{"image": "/etc/passwd"}')
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: params: 'image' is not a parameter; give it in the URL
    """
    params = read_object(text or "{}", "params")
    refused = sorted(_NO_PARAMS & params.keys())
    if refused:
        raise ConfigError(f"params: {refused[0]!r} is not a parameter; give it in the URL")
    return params


@contextmanager
def _uploaded(file: UploadFile) -> Iterator[str]:
    """Store an uploaded scan as a session, which ends with the request; yields its id."""
    sessions = app_instance().sessions()
    suffix = scan_suffix(file.filename or "")
    if sessions is None or not suffix:
        raise ConfigError("file: cannot be read; upload NIfTI, NRRD, MHA, PNG, JPEG or a DICOM file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{suffix}"
        with path.open("wb") as stream:
            shutil.copyfileobj(file.file, stream)
        session_id, _ = sessions.add_session(str(path))
    try:
        yield str(session_id)
    finally:
        sessions.remove_session(session_id)
