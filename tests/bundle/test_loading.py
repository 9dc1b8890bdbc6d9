"""Loading a trained bundle: overrides, whether it is current, MONAI's parser, and what MLflow serves of it."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae.bundle.checksums import checksum
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.bundle.served_model import _load_pyfunc
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError, ScanError


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("inferer#step", r"unknown config key 'inferer#step': \S+Inferer takes .*; did you mean 'steps'\?"),
        ("preprocessing#transforms#2#nope", r"unknown config key 'preprocessing#transforms#2#nope': Resized takes .*"),
        ("inferer#steps#nope", "inferer#steps#nope: the model's configuration has no such key; see .*"),
        ("nope", "nope: the model's configuration has no such key; see .*"),
    ],
)
def test_an_override_that_nothing_takes_is_named_in_one_line(tiny_bundle, key, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        load_bundle(tiny_bundle.directory, "cpu", overrides={key: 1})


def test_overrides_replace_values_and_add_arguments(tiny_bundle):
    overrides = {"slice_range": (0.2, 0.8), "inferer#batch_size": 7, "inferer#steps": 5}
    loaded = load_bundle(tiny_bundle.directory, "cpu", overrides=overrides)
    assert (loaded.inferer.batch_size, loaded.inferer.steps) == (7, 5)
    assert list(loaded.config["slice_range"]) == [0.2, 0.8]


def test_a_loaded_model_keeps_its_checksums_when_the_folder_gets_another_one(bundle):
    trained = load_bundle(bundle, "cpu")
    before = trained.made_from
    assert before == {"model": checksum(bundle), "config": file_checksum(bundle / "models" / "config.json")}
    assert trained.is_current()
    content = (bundle / "models" / "model.pt").read_bytes()
    (bundle / "models" / "model.pt").write_bytes(content + b"0")
    assert not trained.is_current()
    assert trained.made_from == before
    (bundle / "models" / "model.pt").write_bytes(content)
    assert trained.is_current()
    with (bundle / "models" / "config.json").open("a") as stream:
        stream.write("\n")
    assert not trained.is_current()
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(ConfigError, match=r"^bundle: there is no models/model\.pt"):
        trained.is_current()


# -- the model that MLflow serves --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tiny_bundle):
    return _load_pyfunc(str(tiny_bundle.directory))


def test_z_sem_is_that_of_the_opened_file_to_the_bit(served, tiny_bundle, trained):
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
        served.predict(pd.DataFrame({"image": [base64.b64decode("bm8gaW1hZ2U=")], "file_name": ["Mustermann.png"]}))
    assert "Mustermann" not in str(error.value)
