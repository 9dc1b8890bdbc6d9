"""The server's application: MONAI Label's routes in threads, and OHIF.

MONAI Label (0.8.5) declares its endpoints ``async`` but computes in them without awaiting, which blocks the event loop:
during an inference of a minute, not even ``/info`` answers.
"""

from __future__ import annotations

import asyncio
import inspect
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, FastAPI, File, Form, HTTPException, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from monailabel.endpoints.infer import ResultType, run_inference
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import background_executors, tasks

import monai_diffae
from monai_diffae.data.scans import scan_suffix
from monai_diffae.errors import BusyError, ConfigError
from monai_diffae.label.app import answered
from monai_diffae.label.datastore import FolderDatastore
from monai_diffae.label.tasks import WITHOUT_IMAGE
from monai_diffae.label.trainer import IS_RUNNING
from monai_diffae.serving.answers import NotFoundError
from monai_diffae.serving.server import LOOPBACK_ORIGIN, OriginGuard

Endpoint: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]
Check: TypeAlias = Callable[[dict[str, Any]], None]

_NUM_THREADS = {
    "info": 8,
    "batch_infer": 4,
    "train": 1,
    "activelearning": 1,
    "scoring": 4,
    "datastore": 8,
    "session": 4,
    "ohif": 8,
}
"""MONAI Label's modules with routes, and how many requests of each run at once.

``model``, with which clients replace weights, ``wsi_infer``, which reads any path, and ``logs``, whose page runs
scripts of other servers, are left out.
"""

_infer = APIRouter(prefix="/infer", tags=["Infer"])


def build_app(*, loopback_only: bool = True) -> FastAPI:
    """Build the application; MONAI Label's settings must have been applied."""
    # FastAPI's pages /docs and /redoc would run scripts of another server, which could then read the scans
    app = FastAPI(
        title="monai_diffae", version=monai_diffae.__version__, lifespan=_lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(
        CORSMiddleware,
        allow_origin_regex=LOOPBACK_ORIGIN,
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    app.add_middleware(OriginGuard, loopback_only=loopback_only)
    app.include_router(in_threads(_infer, 1))
    for name, num_threads in _NUM_THREADS.items():
        check = _check_training if name == "train" else None
        app.include_router(in_threads(import_module(f"monailabel.endpoints.{name}").router, num_threads, check))
    app.include_router(import_module("monailabel.endpoints.proxy").router)  # awaits the request's body
    endpoints = Path(str(import_module("monailabel.endpoints").__file__)).parent
    app.mount("/static", StaticFiles(directory=endpoints / "static"), name="static")

    @app.get("/", include_in_schema=False)
    def home() -> dict[str, str]:
        return {"OHIF": "/ohif/", "models": "/info/", "requests": "/openapi.json", "3D Slicer": "give it this address"}

    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    instance = app_instance()
    instance.server_mode(True)
    await to_thread.run_sync(instance.on_init_complete)
    try:
        yield
    finally:
        await to_thread.run_sync(_stop_jobs)


def _stop_jobs() -> None:
    """Stop the trainings, scorings and batches that run beside the server."""
    for method, executor in background_executors.items():
        executor.shutdown(wait=False, cancel_futures=True)
        AsyncTask.stop(method)


def in_threads(router: APIRouter, num_threads: int = 8, check: Check | None = None) -> APIRouter:
    """The same routes, whose endpoints run in threads and answer errors with a reason."""
    threaded = APIRouter()
    limiter: list[CapacityLimiter] = []  # made by the first request, as it belongs to an event loop
    for route in router.routes:
        if isinstance(route, APIRoute):
            threaded.add_api_route(
                route.path,
                _in_thread(route.endpoint, num_threads, limiter, check if "POST" in (route.methods or ()) else None),
                methods=sorted(route.methods or ()),
                summary=route.summary,
                tags=route.tags,
                include_in_schema=route.include_in_schema,
                deprecated=route.deprecated,
            )
    return threaded


def _in_thread(endpoint: Endpoint, num_threads: int, limiter: list[CapacityLimiter], check: Check | None) -> Endpoint:
    def run(arguments: dict[str, Any]) -> Any:
        with answered(), _tidied(arguments.get("background_tasks")):
            if check is not None:
                check(arguments)
            return _result_of(endpoint(**arguments))

    async def call(**arguments: Any) -> Any:
        if not limiter:
            limiter.append(CapacityLimiter(num_threads))
        try:
            return await to_thread.run_sync(run, arguments, limiter=limiter[0])
        except asyncio.CancelledError as error:
            raise HTTPException(503, "the server is shutting down; try again later") from error

    call.__name__, call.__doc__ = endpoint.__name__, endpoint.__doc__
    call.__signature__ = inspect.signature(endpoint, eval_str=True)  # type: ignore[attr-defined] # for FastAPI
    return call


@contextmanager
def _tidied(tasks_after: BackgroundTasks | None) -> Iterator[None]:
    """Run the tasks after a request although it fails, which FastAPI drops: they delete uploaded scans."""
    try:
        yield
    except BaseException:
        for task in tasks_after.tasks if tasks_after is not None else []:
            task.func(*task.args, **task.kwargs)
        raise


def _result_of(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        return stopped.value
    coroutine.close()
    raise RuntimeError("this endpoint awaits something, so it cannot run in a thread")


def _check_training(arguments: dict[str, Any]) -> None:
    """Refuse a training that cannot begin, or that MONAI Label (0.8.5) would queue while the first one starts."""
    if any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks("train")):
        raise BusyError(IS_RUNNING)
    app_instance().check_training(arguments.get("model") or "diffae", arguments.get("params") or {})


@_infer.post("/{model}", summary="Run an inference task")
async def infer(
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    output: ResultType | None = None,
) -> Any:
    """Run an inference task for an image of the datastore, an uploaded file, or an image of a session."""
    if model in WITHOUT_IMAGE and output in (ResultType.image, ResultType.dicom_seg):
        raise ConfigError(f"output: {model} answers with JSON only; use output=json")
    if output is ResultType.dicom_seg and isinstance(app_instance().datastore(), FolderDatastore):
        raise ConfigError("output: dicom_seg needs a DICOMweb server as studies, not a folder; use output=image")
    if file is not None:
        with _uploaded(file) as session_id:
            return run_inference(background_tasks, model, image, session_id, params, None, None, output)
    if session_id and app_instance().sessions().get_session(session_id) is None:
        raise NotFoundError("session_id: there is no such session, or it has expired; upload the scan again")
    return run_inference(background_tasks, model, image, session_id, params, None, None, output)


@contextmanager
def _uploaded(file: UploadFile) -> Iterator[str]:
    """Store an uploaded scan as a session, which ends with the request; yields its id."""
    # MONAI Label would pass on a path in place of the id, as any client may
    suffix = scan_suffix(file.filename or "")
    if not suffix:
        raise ConfigError("file: cannot be read; upload NIfTI, NRRD, MHA, PNG, JPEG, TIFF or a DICOM file")
    sessions = app_instance().sessions()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{suffix}"
        with path.open("wb") as stream:
            shutil.copyfileobj(file.file, stream)
        session_id, _ = sessions.add_session(str(path))
    try:
        yield str(session_id)
    finally:
        sessions.remove_session(session_id)
