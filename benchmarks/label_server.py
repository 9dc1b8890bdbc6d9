"""Seconds per task of the MONAI Label server, and its memory over many requests.

    OMP_NUM_THREADS=2 python benchmarks/label_server.py BUNDLE STUDIES [--requests 200]

Starts ``monai-diffae label-server`` for the folder STUDIES, scores its images, and sends requests for the first of
them. Prints the median seconds of each task, the slowest answer of ``/info/`` while a task runs, and the resident
memory of the server before and after ``--requests`` requests, tasks and images in turn. Linux and macOS.
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests

TASKS: dict[str, tuple[str, dict[str, Any]]] = {  # a name for the table: the task and its options
    "diffae_encode": ("diffae_encode", {}),
    "diffae_neighbors": ("diffae_neighbors", {}),
    "diffae_anomaly": ("diffae_anomaly", {}),
    "diffae_anomaly_map": ("diffae_anomaly_map", {}),
    "diffae_reconstruct, z_sem": ("diffae_reconstruct", {"mode": "z_sem"}),
    "diffae_reconstruct, x_T": ("diffae_reconstruct", {"mode": "x_T"}),
}
WARM_UP = 2
MIB = 2**20


@contextmanager
def server(bundle: Path, studies: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The URL and process of a server."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        program = [sys.executable, "-m", "monai_diffae"]
        app = Path(folder) / "app"
        subprocess.run([*program, "label-app", app, "--bundle", bundle], check=True, stdout=subprocess.DEVNULL)
        with (Path(folder) / "output").open("wb") as output:
            command = [*program, "label-server", app, studies, "--port", str(port)]
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            url = f"http://127.0.0.1:{port}"
            wait(url, process)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def wait(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the server answers."""
    while process.poll() is None:
        try:
            requests.get(f"{url}/info/", timeout=5).raise_for_status()
            return
        except requests.RequestException:
            time.sleep(0.5)
    raise RuntimeError("the server has ended")


def ask(url: str, task: str, image: str, options: dict[str, Any]) -> float:
    """Run a task; return its seconds."""
    makes_image = task not in ("diffae_encode", "diffae_neighbors")
    start = time.perf_counter()
    answer = requests.post(
        f"{url}/infer/{task}",
        params={"image": image, "output": "image" if makes_image else "json"},
        data={"params": json.dumps(options)},
        timeout=600,
    )
    seconds = time.perf_counter() - start
    if answer.status_code != 200:
        raise RuntimeError(f"{task}: {answer.text}")
    return seconds


def score(url: str) -> None:
    """Encode all images; the server begins this itself when it starts, and refuses a second scoring meanwhile."""
    while (answer := requests.post(f"{url}/scoring/diffae_embed?run_sync=true", timeout=3600)).status_code == 429:
        time.sleep(1)
    answer.raise_for_status()


def slowest_info(url: str, image: str) -> float:
    """Seconds of the slowest answer of ``/info/`` while the server inverts an image."""
    task = threading.Thread(target=ask, args=(url, "diffae_reconstruct", image, {"mode": "x_T"}))
    task.start()
    slowest = 0.0
    while task.is_alive():
        start = time.perf_counter()
        requests.get(f"{url}/info/", timeout=60).raise_for_status()
        slowest = max(slowest, time.perf_counter() - start)
        time.sleep(0.02)
    return slowest


def memory_over(url: str, process: psutil.Process, images: list[str], number: int) -> list[float]:
    """Resident MiB of the server before, after a half and after all of ``number`` requests."""
    calls = itertools.cycle((task, options, image) for image in images for task, options in TASKS.values())
    resident = [process.memory_info().rss / MIB]
    for count, (task, options, image) in enumerate(itertools.islice(calls, number), 1):
        ask(url, task, image, options)
        if count in (number // 2, number):
            resident.append(process.memory_info().rss / MIB)
    return resident


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("studies", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with server(arguments.bundle, arguments.studies) as (url, process):
        score(url)
        images = sorted(requests.get(f"{url}/datastore/?output=all", timeout=60).json()["objects"])[:8]
        print("| task | median s | slowest s |\n|---|---|---|")
        for name, (task, options) in TASKS.items():
            seconds = [ask(url, task, images[0], options) for _ in range(WARM_UP + arguments.repeats)][WARM_UP:]
            print(f"| `{name}` | {statistics.median(seconds):.2f} | {max(seconds):.2f} |", flush=True)
        print(f"\nslowest answer of /info/ during an inversion: {slowest_info(url, images[0]):.2f} s")
        resident = memory_over(url, process, images, arguments.requests)
    print(f"resident MiB before, after {arguments.requests // 2} and after {arguments.requests} requests: "
          + ", ".join(f"{value:.0f}" for value in resident))  # fmt: skip


if __name__ == "__main__":
    main()
