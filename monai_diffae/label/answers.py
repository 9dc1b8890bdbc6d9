"""The answers of :mod:`monai_diffae.serving.answers`, also for errors of MONAI Label and of DICOMweb servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import requests
from fastapi import HTTPException
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException

from monai_diffae.serving import answers


@contextmanager
def answered() -> Iterator[None]:
    """Turn errors into ``fastapi.HTTPException`` with one line of reason.

    MONAI Label (0.8.5) answers every error with a bare 500.
    """
    with answers.answered():
        try:
            yield
        except MONAILabelException as error:
            missing = isinstance(error, (ImageNotFoundException, LabelNotFoundException))
            raise HTTPException(404 if missing else 400, " ".join(str(error.msg).split())) from error
        except requests.RequestException as error:
            raise HTTPException(
                503, "studies: the DICOMweb server did not return the data; check that it is running"
            ) from error
