"""What the wheel contains, and that it works where there is no checkout (``make test-wheel``).

Its environment sees the dependencies that are installed here; the release workflow installs the wheel with its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from golden_bundles import VERSIONS, difference_from_stored, write_golden_scans

from monai_diffae import __version__

pytestmark = [pytest.mark.slow, pytest.mark.goal(id="R29")]

ROOT = Path(__file__).parents[1]
TINY = ["image_size=[16,16]", "base_channels=8", "channel_mult=[1,2]", "max_epochs=1", "batch_size=4",
        "num_pictures=0", "mlflow=false", "device=cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel that was built from this archive."""
    pytest.importorskip("twine", reason="install the extra dev (make test-wheel does)")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a program of the environment with the wheel, from an empty folder, and returns its output."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    wheel = next(dist.glob("*.whl"))
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    # only now, or pip would take the checkout's own entry for an installation of the same version
    site_packages = next(environment.glob("lib/python*/site-packages"))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    empty = tmp_path_factory.mktemp("empty")

    def run(program: str, *arguments: object) -> str:
        command = [str(environment / "bin" / program), *map(str, arguments)]
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=empty, env=variables, timeout=300
        ).stdout

    return run


def test_the_wheel_contains_the_package_the_bundles_and_the_overlays(dist):
    tracked = subprocess.run(
        ["git", "ls-files", "monai_diffae", "bundles", "configs"],
        check=True, capture_output=True, text=True, cwd=ROOT,
    ).stdout.split()  # fmt: skip
    places = {
        "bundles/": "monai_diffae/bundles/",
        "configs/": "monai_diffae/overlays/",
        "monai_diffae/": "monai_diffae/",
    }
    expected = {
        place + file.removeprefix(folder)
        for file in tracked
        for folder, place in places.items()
        if file.startswith(folder)
    }
    wheel = next(dist.glob("*.whl"))
    assert wheel.stat().st_size < 60_000_000
    names = set(zipfile.ZipFile(wheel).namelist())
    pages = {"monai_diffae/explorer/page/index.html", "monai_diffae/apps/templates/report.html"}
    assert {"monai_diffae/py.typed", *pages} <= names
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert f"monai_diffae-{__version__}.dist-info/licenses/LICENSE" in names


def test_the_wheel_works_without_the_checkout(installed, tmp_path, record_property):
    place = installed("python", "-c", "import monai_diffae; print(monai_diffae.__file__)").strip()
    assert not Path(place).is_relative_to(ROOT)
    assert "site-packages" in place
    assert installed("monai-diffae", "--version").split()[-1] == __version__
    assert "embed" in installed("monai-diffae", "--help")
    bundle = tmp_path / "model"
    installed("monai-diffae", "init", bundle)
    overlay = bundle / "configs" / "overlays" / "fp32.json"
    scans = write_golden_scans(tmp_path / "train", 2, 12)
    installed("monai-diffae", "train", bundle, scans, "--overlays", overlay, "--overrides", *TINY)
    assert (bundle / "models" / "model.pt").is_file()
    golden = VERSIONS[-1] / "3d"
    volumes = write_golden_scans(tmp_path / "scans", 3)
    installed("monai-diffae", "embed", golden, volumes, tmp_path / "out", "--device", "cpu")
    difference = difference_from_stored(golden, tmp_path / "out" / "embeddings.parquet")
    record_property("figure", f"installed wheel: trains, and z_sem of a stored bundle differs by {difference:.1e} SD")
    assert difference <= 1e-5
