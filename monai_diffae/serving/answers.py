"""Answers to requests that cannot be served: a status below 500 and one line that says why."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import HTTPException

from monai_diffae import errors

logger = logging.getLogger(__name__)

_STATUS: dict[type[errors.DiffAEError], int] = {
    errors.UnsafeInputError: 400,
    errors.ConfigError: 400,
    errors.DivergenceError: 400,
    errors.CohortError: 404,
    errors.ScanError: 422,
    errors.MachineError: 503,
}


class NotFoundError(errors.DiffAEError):
    """A request names something that does not exist."""


class ConflictError(errors.DiffAEError):
    """A request cannot be served in the present state, such as a strategy before the first scoring."""


def status_of(error: errors.DiffAEError) -> int:
    """The HTTP status for an error of this package."""
    if isinstance(error, NotFoundError):
        return 404
    if isinstance(error, (ConflictError, errors.BusyError)):
        return 409
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)


@contextmanager
def answered() -> Iterator[None]:
    """Turn errors into ``HTTPException`` with one line; unexpected ones become 500 and name their type only."""
    try:
        yield
    except HTTPException:
        raise
    except Exception as error:
        known = errors.find_diffae_error(error)
        if known is not None:
            raise HTTPException(status_of(known), errors.one_line(known)) from error
        log_unexpected(error)
        raise HTTPException(
            500, f"{type(error).__name__}: this is a bug; see the server's log, and report it"
        ) from error


def log_unexpected(error: BaseException) -> None:
    """Log the type of an error and the lines of code through which it passed, but not its text."""
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    logger.error("unexpected %s at %s", type(error).__name__, where)
