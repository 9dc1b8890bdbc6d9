"""Fixtures for the tests of the MONAI Label app: real scans, tiny trained bundles, and the server in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from label_scans import Studies, fill, shared, tiny_bundle_for


@pytest.fixture(scope="session")
def volumes() -> dict[str, Path]:
    """Twelve hippocampi as NIfTI and one as a DICOM series, by id."""
    files = shared("hippocampus_msd/images", "*.nii.gz")[:12]
    series = shared("hippocampus_hcrop_dicom/Study1_13_HCropVolume", "*.dcm")[0].parent
    return {**{file.name.removesuffix(".nii.gz"): file for file in files}, "series-1": series}


@pytest.fixture(scope="session")
def pictures() -> dict[str, Path]:
    """Twelve X-rays as JPEG, by id."""
    return {file.stem: file for file in shared("cxr_pneumonia_224", "*.jpeg")[:12]}


@pytest.fixture(scope="session")
def bundle_2d(tmp_path_factory: pytest.TempPathFactory, pictures: dict[str, Path]) -> Path:
    """A tiny 2D bundle of X-rays."""
    return tiny_bundle_for(tmp_path_factory.mktemp("label_2d"), "2d", pictures)


@pytest.fixture(scope="session")
def bundle_3d(tmp_path_factory: pytest.TempPathFactory, volumes: dict[str, Path]) -> Path:
    """A tiny 3D bundle of hippocampi."""
    return tiny_bundle_for(tmp_path_factory.mktemp("label_3d"), "3d", volumes)


@dataclass(frozen=True)
class Server:
    """A server in this process.

    Attributes:
        client: sends requests; ``client.get("/info/")``.
        app: the app behind it.
        studies: its scans.
    """

    client: Any
    app: Any
    studies: Studies

    def infer(self, model: str, image: str, output: str = "json", /, **params: Any) -> Any:
        """The response to a request for inference."""
        return self.client.post(f"/infer/{model}?image={image}&output={output}", data={"params": json.dumps(params)})


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, Studies], Server]]:
    """Starts a server in this process: ``serve(bundle, studies)``."""
    from fastapi.testclient import TestClient

    from monai_diffae.label.app_folder import make_app_folder

    clients = []
    before = dict(os.environ)

    def start(bundle: Path, studies: Studies) -> Server:
        from monailabel.interfaces.utils.app import app_instance, clear_cache

        from monai_diffae.label.asgi import build_app
        from monai_diffae.label.server_settings import apply_settings, settings_for

        folder = tmp_path / f"app-{len(clients)}"
        if not folder.exists():
            make_app_folder(folder, bundle, refer=False)
        settings = settings_for(folder, str(studies.folder), 8000)
        quiet = {"MONAI_LABEL_AUTO_UPDATE_SCORING": "false", "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false"}
        apply_settings({**settings, **quiet}, keep=False)
        clear_cache()
        client = TestClient(build_app(), base_url="http://127.0.0.1:8000")
        client.__enter__()
        clients.append(client)
        return Server(client, app_instance(), studies)

    yield start
    for client in clients:
        client.__exit__(None, None, None)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def studies_3d(tmp_path: Path, volumes: dict[str, Path]) -> Studies:
    """Three hippocampi as NIfTI and one as a DICOM series."""
    names = [*list(volumes)[:3], "series-1"]
    return fill(tmp_path / "studies", {name: volumes[name] for name in names})


@pytest.fixture
def studies_2d(tmp_path: Path, pictures: dict[str, Path]) -> Studies:
    """Four X-rays as JPEG."""
    return fill(tmp_path / "studies", {name: pictures[name] for name in list(pictures)[:4]})
