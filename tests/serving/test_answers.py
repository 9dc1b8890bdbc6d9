"""Errors become answers with a status and one line."""

import logging
from pathlib import Path

import pytest
from fastapi import HTTPException

from monai_diffae import errors
from monai_diffae.serving.answers import ConflictError, NotFoundError, answered


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConfigError("x"), 400),
        (errors.UnsafeInputError("x"), 400),
        (errors.CohortError("x"), 404),
        (NotFoundError("x"), 404),
        (ConflictError("x"), 409),
        (errors.BusyError("x"), 409),
        (errors.ScanError("x"), 422),
        (errors.MachineError("x"), 503),
    ],
)
def test_every_error_has_its_status(error, status):
    with pytest.raises(HTTPException) as answer, answered():
        raise error
    assert (answer.value.status_code, answer.value.detail) == (status, "x")


def test_an_error_inside_errors_of_monai_is_found():
    wrapped = RuntimeError("applying transform\nmany lines")
    wrapped.__cause__ = errors.ScanError("a.nii: the file is empty;\n copy it again")
    with pytest.raises(HTTPException) as answer, answered():
        raise wrapped
    assert (answer.value.status_code, answer.value.detail) == (422, "a.nii: the file is empty; copy it again")


def test_an_answer_passes():
    with pytest.raises(HTTPException, match="418"), answered():
        raise HTTPException(418)


def test_unexpected_errors_say_nothing_about_files(caplog):
    with caplog.at_level(logging.ERROR), pytest.raises(HTTPException) as answer, answered():
        Path("/data/doe_jane.nii.gz").read_bytes()
    assert answer.value.status_code == 500
    assert "doe_jane" not in answer.value.detail + caplog.text
    assert "unexpected FileNotFoundError at " in caplog.text
