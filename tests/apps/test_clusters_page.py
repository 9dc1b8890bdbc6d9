"""The recipes of docs/clusters.md: a job array as processes, and Ray Data, equal to a single process to the bit."""

import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import monai_diffae as mdae
from monai_diffae.data.embeddings import read_embeddings, z_matrix

PAGE = "docs/clusters.md"


@pytest.fixture
def place(tiny_bundle, tmp_path, monkeypatch):
    """A folder with the names that the page uses, and the z_sem that one process makes there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_bundle").symlink_to(tiny_bundle.directory)
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / name) for name in table["image"]]
    table.to_csv("scans.csv", index=False)
    return z_matrix(read_embeddings(mdae.embed("my_bundle", "scans.csv", "alone", device="cpu").path))


@pytest.mark.slow
def test_a_job_array_prepares_and_embeds(place, request, tmp_path):
    text = (request.config.rootpath / PAGE).read_text(encoding="utf-8")
    prepare, embed = re.findall(r"^monai-diffae (?:prepare|embed) .*--part.*$", text, flags=re.M)
    for line in (prepare, embed):
        for last in ("--part $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT", ""):
            command = line if last else line.partition(" --part")[0]
            words = f"{sys.executable} -m {command.replace('monai-diffae', 'monai_diffae')}"
            numbers = "123" if last else "1"
            jobs = [
                subprocess.Popen(
                    ["bash", "-c", words],
                    env={**os.environ, "SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": "3"},
                )
                for number in numbers
            ]
            assert [job.wait() for job in jobs] == [0] * len(jobs)
    assert len(list((tmp_path / "prepared").glob("*.safetensors"))) == 3
    assert np.array_equal(z_matrix(read_embeddings(tmp_path / "results" / "embeddings.parquet")), place)


@pytest.mark.slow
def test_ray_encodes_as_embed_does(place, request, tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is no dependency")
    text = (request.config.rootpath / PAGE).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    code = code.replace('"my_bundle"', repr(str(tmp_path / "my_bundle")))
    ray.init(num_cpus=2)
    try:
        exec(compile(code, "block", "exec"), {})
    finally:
        ray.shutdown()
    table = pd.read_parquet("embeddings").set_index("id").loc[pd.read_csv("scans.csv")["id"]]
    assert np.array_equal(table.filter(like="z_").to_numpy(), place)
