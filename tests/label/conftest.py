"""Fixtures for the tests of the MONAI Label app: real scans, tiny trained bundles, and the server in this process."""

from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest
from label_scans import fill, some, tiny_bundle_for
from label_servers import server_in_this_process
from scan_files import shared

if find_spec("monailabel") is None:  # `make test-label` has it, in an environment of its own
    collect_ignore = [file.name for file in Path(__file__).parent.glob("test_*") if file.name != "test_commands.py"]


@pytest.fixture(scope="session")
def volumes():
    """Twelve hippocampi as NIfTI and one as a DICOM series, by id."""
    files = sorted(shared("hippocampus_msd/images").glob("*.nii.gz"))[:12]
    series = shared("hippocampus_hcrop_dicom/Study1_13_HCropVolume")
    return {**{file.name.removesuffix(".nii.gz"): file for file in files}, "series-1": series}


@pytest.fixture(scope="session")
def pictures():
    """Twelve X-rays as JPEG, by id."""
    return {file.stem: file for file in sorted(shared("cxr_pneumonia_224").rglob("*.jpeg"))[:12]}


@pytest.fixture(scope="session")
def bundle_2d(tmp_path_factory, pictures):
    """A tiny 2D bundle of X-rays."""
    return tiny_bundle_for(tmp_path_factory.mktemp("label_2d"), "2d", pictures)


@pytest.fixture(scope="session")
def bundle_3d(tmp_path_factory, volumes):
    """A tiny 3D bundle of hippocampi."""
    return tiny_bundle_for(tmp_path_factory.mktemp("label_3d"), "3d", volumes)


@pytest.fixture
def serve(tmp_path):
    """Starts a server in this process: ``serve(bundle, studies)``."""
    with ExitStack() as servers:
        names = (f"app-{number}" for number in range(9))
        yield lambda bundle, studies: servers.enter_context(
            server_in_this_process(tmp_path / next(names), bundle, studies)
        )


@pytest.fixture(scope="module")
def server_3d(bundle_3d, volumes, tmp_path_factory):
    """A server of three hippocampi as NIfTI and one as a DICOM series, which are scored; tests change nothing of it."""
    root = tmp_path_factory.mktemp("server_3d")
    studies = fill(root / "studies", some(volumes, 3))
    with server_in_this_process(root / "app", bundle_3d, studies) as server:
        server.score()
        yield server


@pytest.fixture
def studies_3d(tmp_path, volumes):
    """Three hippocampi as NIfTI and one as a DICOM series."""
    return fill(tmp_path / "studies", some(volumes, 3))


@pytest.fixture
def studies_2d(tmp_path, pictures):
    """Four X-rays as JPEG."""
    return fill(tmp_path / "studies", {name: pictures[name] for name in list(pictures)[:4]})
