"""MONAI Label's routes, run in threads, so that a long request does not stop the server.

MONAI Label (0.8.5) declares its endpoints ``async`` but computes in them without awaiting, which blocks the event loop:
during an inference of a minute, not even ``/info`` answers.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, HTTPException
from fastapi.background import BackgroundTasks
from fastapi.routing import APIRoute
from monailabel.utils.async_tasks.utils import tasks

from monai_diffae.errors import BusyError, ConfigError
from monai_diffae.label.answers import answered
from monai_diffae.label.training_state import IS_RUNNING

Endpoint: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]
Check: TypeAlias = Callable[[Mapping[str, Any]], None]
"""Raises an error if the arguments of a request cannot be used."""


def in_threads(router: APIRouter, num_threads: int = 8, checks: Mapping[str, Check] | None = None) -> APIRouter:
    """The same routes, whose endpoints run in threads and answer errors with a reason.

    Args:
        router: a router of MONAI Label; its endpoints do not await anything.
        num_threads: how many of its requests run at the same time; the others wait.
        checks: called before each request, by its method, such as ``POST``.

    Example:
        >>> router = APIRouter(prefix="/ping")
        >>> async def ping(): return "pong"
        >>> router.add_api_route("/", ping)
        >>> [route.path for route in in_threads(router).routes]
        ['/ping/']
    """
    threaded = APIRouter()
    limiter: list[CapacityLimiter] = []  # made by the first request, as it belongs to an event loop
    for route in router.routes:
        if isinstance(route, APIRoute):
            methods = sorted(route.methods or ())
            threaded.add_api_route(
                route.path,
                _in_thread(route.endpoint, num_threads, limiter, (checks or {}).get(methods[0])),
                methods=methods,
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
            return result_of(endpoint(**arguments))

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
    """Run the tasks after a request although it fails: they delete uploaded scans from the temporary folder.

    FastAPI drops them if an endpoint raises an error.
    """
    try:
        yield
    except BaseException:
        for task in tasks_after.tasks if tasks_after is not None else []:
            task.func(*task.args, **task.kwargs)
        raise


def result_of(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits.

    Example:
        >>> async def answer(): return 42
        >>> result_of(answer())
        42
    """
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        return stopped.value
    coroutine.close()
    raise RuntimeError("this endpoint awaits something, so it cannot run in a thread")


def refuse_second_training(arguments: Mapping[str, Any]) -> None:
    """Refuse a training while another one is waiting or running.

    MONAI Label (0.8.5) only notices a running one once its process has started, and queues the second one before.

    Raises:
        BusyError: there is one.
    """
    if any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks("train")):
        raise BusyError(IS_RUNNING)


def refuse_archives(arguments: Mapping[str, Any]) -> None:
    """Refuse to unpack an uploaded archive: MONAI Label (0.8.5) writes its files wherever their names lead.

    Raises:
        ConfigError: the request asks for it.
    """
    if arguments.get("uncompress"):
        raise ConfigError("uncompress: archives are not unpacked; upload the files of the scan")
