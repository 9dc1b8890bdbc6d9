"""MONAI Label's settings for our data."""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

from monai_diffae.label.server_settings import apply_settings, settings_for


@pytest.fixture(autouse=True)
def environment():
    from monailabel.config import settings

    before, values = dict(os.environ), settings.model_dump()
    yield
    os.environ.clear()
    os.environ.update(before)
    for name, value in values.items():
        setattr(settings, name, value)


def test_settings_reach_monai_label_and_its_jobs(tmp_path):
    from monailabel.config import settings

    apply_settings(settings_for(tmp_path / "app", "/scans", 8123, "MR"), keep=False)
    assert str((tmp_path / "app").resolve()) == settings.MONAI_LABEL_APP_DIR
    assert settings.MONAI_LABEL_STUDIES == "/scans"
    assert settings.MONAI_LABEL_SERVER_PORT == 8123
    assert settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER == {"Modality": "MR"}
    assert "PYTHONPATH" in os.environ
    # the server keeps the list of images, its jobs only read it
    assert settings.MONAI_LABEL_DATASTORE_READ_ONLY is False
    assert type(settings)().MONAI_LABEL_DATASTORE_READ_ONLY is True


def test_settings_of_the_user_stay(monkeypatch):
    from monailabel.config import settings

    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_SEARCH_FILTER", json.dumps({"Modality": "DX"}))
    monkeypatch.setenv("MONAI_LABEL_STUDIES", "/others")
    apply_settings(settings_for(Path("app"), "/scans", 8000))
    assert settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER == {"Modality": "DX"}
    assert settings.MONAI_LABEL_STUDIES == "/scans"


def test_by_default_series_of_all_modalities_are_listed():
    assert settings_for(Path("app"), "/scans", 8000)["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"] == "{}"
