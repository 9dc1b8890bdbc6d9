"""Ids and tags of requests never lead to other files, and the server's log names no scan."""

import logging
import os.path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_diffae.errors import ConfigError
from monai_diffae.label.ids import check_id, check_tag
from monai_diffae.label.logs import set_up_logging


def test_names_of_files_are_ids_and_words_are_tags():
    for id in ("hippocampus_001", "IM-0115-0001", "1.2.840.113619.2", "Müller scan 3", "a..b", "id=x"):
        assert check_id(id) == id
    for tag in ("final", "original", "reader-2", "v1.0", "first pass"):
        assert check_tag(tag) == tag


def test_paths_are_no_ids_and_no_tags():
    paths = ["", " ", "..", ".hidden", "../x", "a/b", "/etc/passwd", "a\\b", "a\x00b", "a\nb", "x" * 201, None]
    for text in paths:
        with pytest.raises(ConfigError, match=r"^image: "):
            check_id(text)
    for text in ("", "..", "../x", "a/b", "/tmp", ".x", "a..b", " a", "x" * 65, None):
        with pytest.raises(ConfigError, match=r"^tag: "):
            check_tag(text)


@settings(max_examples=100)
@given(st.text("a./\\ :\n\0~é", max_size=12))
def test_an_id_never_leads_out_of_a_folder(text):
    try:
        id = check_id(text)
    except ConfigError:
        return
    assert os.path.dirname(os.path.normpath(os.path.join("/studies", id))) == "/studies"
    assert "\n" not in id


def write_log(file):
    set_up_logging(file)
    logging.getLogger("monai_diffae.label.trainer").info("epoch %d", 3)
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    logging.getLogger("monailabel.endpoints.infer").error("Infer Request: Doe^Jane")
    logging.getLogger("monai_diffae.data.scans").warning("doe_jane.nii.gz: 3 voxels were replaced")
    logging.getLogger("uvicorn.access").info("GET /datastore/image?image=doe_jane")
    logging.getLogger("timeloop").info("Starting Timeloop..")
    job = logging.getLogger("task_train")
    job.info("[2026-11-26 10:00:00] [7] [MainThread] [INFO] (__main__:37) - Initializing App from: /data/doe_jane")
    job.info("[2026-11-26 10:00:01] [7] [MainThread] [INFO] (monai_diffae.label.trainer:99) - epoch 1 of 2, loss 0.1")
    job.info("FileNotFoundError: /data/doe_jane.nii.gz")


def test_only_own_lines_of_the_server_and_its_jobs_are_logged(in_a_fork, tmp_path):
    in_a_fork(write_log, tmp_path / "logs" / "app.log")
    lines = (tmp_path / "logs" / "app.log").read_text().splitlines()
    assert [line.split(" ", 3)[3] for line in lines] == [
        "epoch 3", "Application startup complete.", "train: epoch 1 of 2, loss 0.1"
    ]  # fmt: skip
