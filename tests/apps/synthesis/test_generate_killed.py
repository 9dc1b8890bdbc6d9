"""A run that the machine ends half way, and the same command again."""

import subprocess
import sys
import time

import pytest

COUNT = 80


def made(folder):
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".png" and file.name[0] != "."]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.goal(id="R16")
@pytest.mark.slow
def test_after_a_kill_the_same_command_gives_the_result_of_an_uninterrupted_run(latent_bundle, tmp_path):
    options = ["--num-images", COUNT, "--image-format", "nii.gz", "--batch-size", 1, "--device", "cpu"]

    def start(folder):
        command = [sys.executable, "-m", "monai_diffae.cli", "--quiet", "generate", latent_bundle, folder, *options]
        return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(120) == 0
    process = start(killed)
    deadline = time.monotonic() + 120
    while len(list((killed / "images").glob("0*"))) < COUNT // 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait(10)
    before = {file: file.stat().st_mtime_ns for file in (killed / "images").glob("0*")}
    assert COUNT // 5 <= len(before) < COUNT
    assert not (killed / "generated.csv").exists()
    again = start(killed)
    printed, errors = again.communicate(timeout=120)
    assert (again.returncode, printed, errors) == (0, f"{killed}\n", "")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert made(killed) == made(whole)
