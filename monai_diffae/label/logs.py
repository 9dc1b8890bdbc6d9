"""What the server logs: messages of this folder and of uvicorn, without ids, names and paths."""

from __future__ import annotations

import logging
import re
from logging.handlers import RotatingFileHandler
from pathlib import Path

_OWN = ("monai_diffae.label", "uvicorn.error")
_JOBS = ("task_train", "task_scoring", "task_batch_infer")  # with a line for each line that a job prints
_OWN_LINE = re.compile(r"\(monai_diffae\.label\b[^)]*\) - (.*)")
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class OwnLines(logging.Filter):
    """Passes the records of this folder, of uvicorn, and those of jobs, which :class:`JobLines` has filtered.

    MONAI Label (0.8.5) logs requests, ids and paths, and other modules of this package name files in their warnings. A
    file's name is often that of a patient.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged."""
        return record.name in _JOBS or record.name.startswith(_OWN)


class JobLines(logging.Filter):
    """Passes those lines of a job's output that this folder logged, without their time and level."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is logged."""
        line = _OWN_LINE.search(record.getMessage())
        if line is None:
            return False
        record.msg, record.args = f"{record.name.removeprefix('task_')}: {line[1]}", ()
        return True


def silence_monai_label() -> None:
    """Keep MONAI Label from logging ids and paths, in the server and in its jobs, unless this package logs at DEBUG."""
    if logging.getLogger("monai_diffae").level == logging.DEBUG:
        return
    for name in ("monailabel", "dicomweb_client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("timeloop").disabled = True  # it sets its own level
    logging.getLogger("__main__").setLevel(logging.CRITICAL)  # a job is started as MONAI Label's module


def set_up_logging(file: Path) -> None:
    """Send the server's own lines to the terminal and to a file, and nothing else.

    Args:
        file: the log; at one megabyte a new file is started, and the last three are kept.
    """
    debug = logging.getLogger("monai_diffae").level == logging.DEBUG
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    file.parent.mkdir(parents=True, exist_ok=True)
    root.addHandler(RotatingFileHandler(file, maxBytes=2**20, backupCount=3, encoding="utf-8"))
    for handler in root.handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
        if not debug:
            handler.addFilter(OwnLines())
    if logging.getLogger("monai_diffae").level == logging.NOTSET:
        logging.getLogger("monai_diffae").setLevel(logging.INFO)
    for name in (*_JOBS, "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in () if debug else _JOBS:
        logging.getLogger(name).addFilter(JobLines())
    logging.getLogger("uvicorn.access").disabled = True  # its lines hold the ids of requests
    silence_monai_label()
