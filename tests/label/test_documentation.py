"""What docs/label.md shows runs, and the page knows every task, option and strategy."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import requests
from forked_program import served
from label_scans import fill
from label_servers import server_in_this_process
from monailabel.client import MONAILabelClient

PAGE = (Path(__file__).parents[2] / "docs" / "label.md").read_text(encoding="utf-8")
URL = "http://127.0.0.1:8000"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)


@pytest.fixture(scope="module")
def server_url(bundle_3d, volumes, tmp_path_factory):
    """A server in a thread, with four encoded scans; one of them has the id ``scan-1``."""
    root = tmp_path_factory.mktemp("documentation")
    first, *others = list(volumes.items())[:4]
    studies = fill(root / "studies", {"scan-1": first[1], **dict(others)})
    with server_in_this_process(root / "app", bundle_3d, studies) as server:
        server.score()
        with served(lambda _: server.client.app, lifespan="off") as url:
            yield url


def test_the_example_in_python_runs(server_url, capsys):
    example, training = blocks("py")
    names = {}
    exec(compile(example.replace(URL, server_url), "label.md", "exec"), names)
    assert len(names["z_sem"]) == 8
    assert "mse" in names["answer"]
    assert re.search(r"\.nii\.gz [\d.]+ [\d.]+$", capsys.readouterr().out, flags=re.M)
    label = requests.get(f"{server_url}/datastore/label?label={names['image']}&tag=final", timeout=30)
    assert label.content == Path(names["mask"]).read_bytes()
    for method in re.findall(r"client\.(\w+)\(", training):  # a training takes too long here
        assert hasattr(MONAILabelClient, method)


def test_the_examples_with_curl_run(server_url, volumes, tmp_path):
    shutil.copy(next(iter(volumes.values())), tmp_path / "my_scan.nii.gz")
    (block,) = blocks("sh")
    for line in block.splitlines():
        command = [*shlex.split(line.replace(URL, server_url)), "-f"]  # fail on an error of the server
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
        assert answer.returncode == 0, line
    assert (tmp_path / "mask.nii.gz").read_bytes()[:2] == b"\x1f\x8b"
