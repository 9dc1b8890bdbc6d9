"""The command: what it refuses, what it makes first, and the server as a process of its own."""

import re
import socket
import time

import httpx
import pytest

from monai_diffae import explore
from monai_diffae.errors import CohortError, ConfigError, MachineError


def test_a_port_in_use_is_refused_before_anything_is_loaded():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(MachineError, match="Address already in use"):
            explore("no_bundle", "no_cohort", port=other.getsockname()[1])


@pytest.mark.parametrize(("name", "value"), [("port", 0), ("port", 65536), ("num_components", 0)])
def test_arguments_are_checked(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        explore("bundle", "cohort", **{name: value})


def test_the_folder_of_scans_gets_no_results(class_folders, tiny_bundle, monkeypatch):
    monkeypatch.chdir(class_folders)
    with pytest.raises(ConfigError, match="out: explored lies in the folder of scans"):
        explore(tiny_bundle.directory, class_folders)


def test_a_direction_of_another_model_is_refused(labelled, tiny_bundle, open_explored, tmp_path):
    with pytest.raises(ConfigError, match="fitted to another model"):
        open_explored(tiny_bundle.directory, labelled.cohort, tmp_path, directions=[labelled.direction])


def test_embeddings_of_another_model_are_refused(labelled, tiny_bundle, open_explored, tmp_path):
    with pytest.raises(ConfigError, match="another autoencoder made it"):
        open_explored(tiny_bundle.directory, labelled.cohort, tmp_path, embeddings=labelled.embeddings)


def test_embeddings_of_another_cohort_are_refused(labelled, small_cohort, open_explored, tmp_path):
    import pandas as pd

    table = pd.read_csv(small_cohort).assign(id=lambda t: "other-" + t["id"].astype(str))
    table["image"] = [str(small_cohort.parent / image) for image in table["image"]]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(CohortError, match="has no case of this cohort"):
        open_explored(labelled.bundle, tmp_path / "cohort.csv", tmp_path, embeddings=labelled.embeddings)


def test_without_a_table_the_cohort_is_embedded_once(labelled, open_explored, tmp_path, caplog):
    for _ in range(2):
        with caplog.at_level("INFO", logger="monai_diffae"):
            opened = open_explored(labelled.bundle, labelled.cohort, tmp_path / "out")
        assert len(opened.atlas.cases) == 12
        opened.close()
    assert caplog.text.count("$ monai-diffae embed") == 2
    assert caplog.text.count("is complete; nothing to do") == 1


def test_the_server_as_a_process(labelled, start_program, tmp_path):
    with socket.socket() as test:
        test.bind(("127.0.0.1", 0))
        port = test.getsockname()[1]
    words = ["explore", "--bundle", labelled.bundle, "--cohort", labelled.cohort, "--embeddings", labelled.embeddings]
    shown = tmp_path / "shown"
    process = start_program(*words, "--out", tmp_path / "out", "--port", port, "--no-browser", output=shown)
    address = r"open (http://127\.0\.0\.1:\d+/\?token=[\w-]{32}) \(Ctrl-C ends the server\)\n"
    while not (opened := re.search(address, shown.read_text())):
        assert process.is_alive(), shown.read_text()
        time.sleep(0.05)
    url = opened[1]
    assert httpx.get(url.partition("?")[0]).status_code == 403
    with httpx.Client() as browser:
        assert "explore" in browser.get(url).text
        assert len(browser.get(url.replace("/?", "/api/overview?")).json()["ids"]) == 12
    process.terminate()
    process.join(30)
    assert process.exitcode in (0, -15)
    assert shown.read_text().endswith(opened[0])
    assert "Traceback" not in shown.read_text()
