"""Errors of MONAI Label and of DICOMweb servers become answers with a status and one line, too."""

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

import requests
from fastapi import HTTPException
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException

from monai_diffae import errors
from monai_diffae.label.answers import answered


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ImageNotFoundException("x"), 404),
        (MONAILabelException(MONAILabelError.INVALID_INPUT, "x"), 400),
        (errors.ScanError("x"), 422),
        (HTTPException(418, "x"), 418),
    ],
)
def test_every_error_has_its_status(error, status):
    with pytest.raises(HTTPException) as answer, answered():
        raise error
    assert (answer.value.status_code, answer.value.detail) == (status, "x")


def test_a_dicomweb_server_that_fails_is_a_reason():
    with pytest.raises(HTTPException, match="503: studies: the DICOMweb server"), answered():
        raise requests.ConnectionError("http://secret:8042")
