import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae.bundle.loading import load_bundle
from monai_diffae.bundle.served_model import _load_pyfunc
from monai_diffae.errors import ScanError


@pytest.fixture(scope="module")
def served(tiny_bundle):
    return _load_pyfunc(str(tiny_bundle.directory))


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "png")
    return stream.getvalue()


def test_z_sem_is_that_of_the_opened_file_to_the_bit(served, tiny_bundle):
    frame = pd.read_csv(tiny_bundle.cohort).head(3)
    files = [tiny_bundle.cohort.parent / image for image in frame["image"]]
    rows = [{"image": file.read_bytes(), "file_name": file.name} for file in files]
    answers = served.predict(pd.DataFrame(rows))
    trained = load_bundle(tiny_bundle.directory, "cpu")
    expected = [trained.open(file).z_sem.mean(dim=0).numpy() for file in files]
    assert answers.dtype == np.float32
    assert np.array_equal(answers, np.stack(expected))


def test_the_name_matters_only_for_its_ending(served):
    image = png(np.arange(400, dtype=np.uint8).reshape(20, 20))
    names = ["scan.png", "../../etc/Mustermann.PNG", "https://example.org/a.png"]
    answers = served.predict(pd.DataFrame({"image": [image] * 3, "file_name": names}))
    assert (answers == answers[0]).all()


def test_a_file_that_is_no_image_is_refused_without_its_name(served):
    content = base64.b64decode("bm8gaW1hZ2U=")
    with pytest.raises(ScanError) as error:
        served.predict(pd.DataFrame({"image": [content], "file_name": ["Mustermann.png"]}))
    assert "Mustermann" not in str(error.value)
