"""The model that MLflow serves: z_sem of the files that it is sent."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae.bundle import load_bundle
from monai_diffae.errors import ScanError
from monai_diffae.handlers.logged_model import _load_pyfunc


@pytest.fixture(scope="module")
def served(tiny_bundle):
    return _load_pyfunc(str(tiny_bundle.directory))


def test_z_sem_is_that_of_the_opened_file_to_the_bit(served, tiny_bundle):
    trained = load_bundle(tiny_bundle.directory, "cpu")
    frame = pd.read_csv(tiny_bundle.cohort).head(3)
    files = [tiny_bundle.cohort.parent / image for image in frame["image"]]
    rows = [{"image": file.read_bytes(), "file_name": file.name} for file in files]
    answers = served.predict(pd.DataFrame(rows))
    expected = [trained.open(file).z_sem.mean(dim=0).numpy() for file in files]
    assert answers.dtype == np.float32
    assert np.array_equal(answers, np.stack(expected))


def test_the_name_matters_only_for_its_ending_and_is_not_told(served):
    stream = io.BytesIO()
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(stream, "png")
    names = ["scan.png", "../../etc/Mustermann.PNG", "https://example.org/a.png"]
    answers = served.predict(pd.DataFrame({"image": [stream.getvalue()] * 3, "file_name": names}))
    assert (answers == answers[0]).all()
    with pytest.raises(ScanError) as error:
        served.predict(pd.DataFrame({"image": [b"no image"], "file_name": ["Mustermann.png"]}))
    assert "Mustermann" not in str(error.value)
