"""What ``python -m monai.bundle`` shows of this package: its log, and errors as one line."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from monai_diffae.errors import find_diffae_error, one_line


def show_plain_messages_in_bundle_runs() -> None:
    """In ``python -m monai.bundle``, show this package's log, and errors of ours as one line without a traceback.

    Nothing changes in other programs: a notebook or script that imports the package keeps its own logging and
    tracebacks.
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

    def print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if find_diffae_error(error) is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"error: {one_line(error)}", file=sys.stderr)

    sys.excepthook = print_error
