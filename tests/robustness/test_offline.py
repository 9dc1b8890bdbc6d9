"""Goal R22: nothing needs a network, and nothing uses one."""

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.goal(id="R22")


def test_tests_cannot_reach_another_machine(no_network):
    for attempt in (
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.socket().connect_ex(("198.51.100.7", 1)),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("203.0.113.1", 53)),
        lambda: socket.gethostbyname("example.org"),
        lambda: urllib.request.urlopen("http://example.org/", timeout=1),
    ):
        with pytest.raises(OSError, match="tests may not use the network"):
            attempt()
        assert len(no_network) == 1
        no_network.clear()


def _can_leave_the_network():
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _can_leave_the_network(), reason="unshare -rn is not permitted here")
def test_the_main_commands_run_without_a_network(small_cohort, tiny_settings, tmp_path, record_property):
    """In a network namespace without any address; MLflow's tracking is on."""
    bundle = tmp_path / "bundle"
    settings = {**tiny_settings, "mlflow": True}
    overrides = [f"{key}={str(value).replace(' ', '')}" for key, value in settings.items()]
    commands = [
        ["init", bundle, "--bundle", "diffae_2d"],
        ["train", bundle, small_cohort, "--overrides", *overrides],
        ["embed", bundle, small_cohort, tmp_path / "z", "--device", "cpu"],
        ["probe", tmp_path / "z" / "embeddings.parquet", tmp_path / "p", "--targets", "ventricles"],
        ["reconstruct", bundle, small_cohort, tmp_path / "r", "--limit", "2", "--device", "cpu"],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path / "home")}
    for command in commands:
        program = ["unshare", "-rn", sys.executable, "-m", "monai_diffae.cli", *command]
        done = subprocess.run([*map(str, program)], capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, (command[0], done.stderr[-3000:])
        assert "Traceback" not in done.stderr
    assert Path(tmp_path / "r" / "reconstructions.csv").is_file()
    record_property("figure", f"{len(commands)} commands without a network end with 0")
