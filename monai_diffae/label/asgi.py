"""The server: MONAI Label's routes and those of this folder, as the ASGI application ``monai_diffae.label.asgi:app``.

The command ``monai-diffae label-server`` runs it. For another ASGI server, set ``MONAI_LABEL_APP_DIR`` and
``MONAI_LABEL_STUDIES`` to the app's folder and the studies.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.staticfiles import StaticFiles

import monai_diffae
from monai_diffae.errors import ConfigError
from monai_diffae.label.app_folder import AppFolder
from monai_diffae.label.logs import set_up_logging
from monai_diffae.label.server_settings import apply_settings, settings_for
from monai_diffae.serving.server import LOOPBACK_ORIGIN, OriginGuard

_ROUTES = {"info": 8, "batch_infer": 4, "train": 1, "activelearning": 1, "scoring": 4, "datastore": 8,
           "session": 4, "ohif": 8}  # fmt: skip
"""The modules of MONAI Label with routes, and how many requests of each run at the same time.

``model``, with which clients replace weights, ``wsi_infer``, which reads any path, and ``logs``, whose page runs
scripts of other servers, are left out.
"""


def build_app(*, loopback_only: bool = True) -> FastAPI:
    """Build the application; MONAI Label's settings must have been applied.

    Args:
        loopback_only: whether only requests to this machine's loopback address are served.
    """
    from monai_diffae.label import infer_route
    from monai_diffae.label.infos import check_infos
    from monai_diffae.label.routes import in_threads, refuse_archives, refuse_second_training

    # FastAPI's pages /docs and /redoc would run scripts of another server, which could then read the scans
    app = FastAPI(
        title="monai_diffae", version=monai_diffae.__version__, lifespan=_lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(
        CORSMiddleware, allow_origin_regex=LOOPBACK_ORIGIN, allow_credentials=True,
        allow_methods=["*"], allow_headers=["*"],
    )  # fmt: skip
    app.add_middleware(OriginGuard, loopback_only=loopback_only)
    app.include_router(in_threads(infer_route.router, 1))
    checks = {
        "train": {"POST": refuse_second_training},
        "session": {"PUT": refuse_archives},
        "datastore": {"PUT": check_infos},
    }
    for name, num_threads in _ROUTES.items():
        router = import_module(f"monailabel.endpoints.{name}").router
        app.include_router(in_threads(router, num_threads, checks.get(name)))
    app.include_router(import_module("monailabel.endpoints.proxy").router)  # awaits the request's body
    endpoints = Path(str(import_module("monailabel.endpoints").__file__)).parent
    app.mount("/static", StaticFiles(directory=endpoints / "static"), name="static")
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    from monailabel.interfaces.utils.app import app_instance

    instance = app_instance()
    instance.server_mode(True)
    await to_thread.run_sync(instance.on_init_complete)
    try:
        yield
    finally:
        await to_thread.run_sync(stop_jobs)


def stop_jobs() -> None:
    """Stop the trainings, scorings and batches that run beside the server."""
    from monailabel.utils.async_tasks.task import AsyncTask
    from monailabel.utils.async_tasks.utils import background_executors

    for method, executor in background_executors.items():
        executor.shutdown(wait=False, cancel_futures=True)
        AsyncTask.stop(method)


def _from_environment() -> FastAPI:
    folder, studies = (os.environ.get(f"MONAI_LABEL_{name}", "") for name in ("APP_DIR", "STUDIES"))
    if not folder or not studies:
        raise ConfigError("MONAI_LABEL_APP_DIR, MONAI_LABEL_STUDIES: set both, or use monai-diffae label-server")
    port = int(os.environ.get("MONAI_LABEL_SERVER_PORT", "8000"))
    AppFolder(Path(folder)).check_code()
    apply_settings(settings_for(Path(folder), studies, port))
    set_up_logging(AppFolder(Path(folder)).log_file)
    return build_app()


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'monai_diffae.label.asgi' has no attribute {name!r}")
    globals()["app"] = _from_environment()  # built when an ASGI server asks for it
    return globals()["app"]
