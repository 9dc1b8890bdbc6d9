"""One family of errors: what is wrong, with which file, case or key, and what to do about it.

Every message is a single line, so that it reads the same in a terminal, in ``failures.csv`` and in a log.
"""

from __future__ import annotations

import logging
import sys
from types import TracebackType


class DiffAEError(Exception):
    """Something that the user can mend. ``exit_code`` is what a command ends with because of it."""

    exit_code = 1


class ConfigError(DiffAEError, ValueError):
    """A config key, argument or option that cannot be used as it is."""

    exit_code = 2


class ScanError(DiffAEError, ValueError):
    """One scan that cannot be used; the other cases of its cohort can."""

    exit_code = 4


class CohortError(DiffAEError, ValueError):
    """A folder, table or datalist that gives no usable set of cases."""

    exit_code = 4


class UnsafeInputError(DiffAEError, ValueError):
    """Input that is refused because reading it could run code or exhaust the machine."""

    exit_code = 5


class MachineError(DiffAEError, RuntimeError):
    """The machine cannot do what was asked: no disk space, no device, not enough memory."""

    exit_code = 6


def find_diffae_error(error: BaseException | None) -> DiffAEError | None:
    """The first :class:`DiffAEError` in an exception's chain of causes.

    MONAI wraps whatever a transform or a config component raises into a ``RuntimeError`` of many lines;
    the cause below it is the line worth showing.

    Example:
        >>> wrapped = RuntimeError("applying transform ...")
        >>> wrapped.__cause__ = ScanError("case 7: file is empty; copy it again")
        >>> str(find_diffae_error(wrapped))
        'case 7: file is empty; copy it again'
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, DiffAEError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def one_line(error: BaseException) -> str:
    """An exception as one line: the user's error in its chain if there is one, else its type and message."""
    known = find_diffae_error(error)
    if known is not None:
        return " ".join(str(known).split())
    # MONAI wraps errors of transforms and components into others that name neither cause nor key
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())


def speak_plainly_in_bundle_runs() -> None:
    """In ``python -m monai.bundle``: log lines of this package are shown, and errors are one line, no traceback.

    Only in that program: a notebook or script that imports the package keeps its own logging and tracebacks.
    """
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is None or spec.name != "monai.bundle.__main__":
        return

    log = logging.getLogger("monai_diffae")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
        log.propagate = False

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if find_diffae_error(error) is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"error: {one_line(error)}", file=sys.stderr)

    sys.excepthook = hook
