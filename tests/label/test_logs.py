"""The server's log has the lines of this room only, without ids and paths of other modules."""

import logging

import pytest

from monai_diffae.label.logs import OwnLines, set_up_logging


@pytest.fixture
def log_file(tmp_path):
    """The log of a server; loggers and their levels are as before afterwards."""
    root = logging.getLogger()
    names = ("", "monai_diffae", "monailabel", "dicomweb_client", "__main__", "uvicorn.error", "task_train",
             "task_scoring", "task_batch_infer")  # fmt: skip
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = list(root.handlers)
    set_up_logging(tmp_path / "logs" / "app.log")
    yield tmp_path / "logs" / "app.log"
    for handler in root.handlers:
        for own in [each for each in handler.filters if isinstance(each, OwnLines)]:
            handler.removeFilter(own)
    root.handlers = handlers
    for name in ("task_train", "task_scoring", "task_batch_infer"):
        logging.getLogger(name).filters.clear()
    logging.getLogger("uvicorn.access").disabled = False
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_only_own_lines_are_logged(log_file):
    logging.getLogger("monai_diffae.label.trainer").info("epoch %d", 3)
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    logging.getLogger("monailabel.endpoints.infer").error("Infer Request: Doe^Jane")
    logging.getLogger("monai_diffae.data.scans").warning("doe_jane.nii.gz: 3 voxels were replaced")
    logging.getLogger("uvicorn.access").info("GET /datastore/image?image=doe_jane")
    logging.getLogger("timeloop").info("Starting Timeloop..")
    text = log_file.read_text()
    assert [line.split(" ", 3)[3] for line in text.splitlines()] == ["epoch 3", "Application startup complete."]


def test_of_a_job_the_own_lines_are_logged(log_file):
    job = logging.getLogger("task_train")
    job.info("[2026-11-26 10:00:00] [7] [MainThread] [INFO] (__main__:37) - Initializing App from: /data/doe_jane")
    job.info("[2026-11-26 10:00:01] [7] [MainThread] [INFO] (monai_diffae.label.trainer:99) - epoch 1 of 2, loss 0.1")
    job.info("FileNotFoundError: /data/doe_jane.nii.gz")
    lines = log_file.read_text().splitlines()
    assert [line.split(" ", 3)[3] for line in lines] == ["train: epoch 1 of 2, loss 0.1"]
