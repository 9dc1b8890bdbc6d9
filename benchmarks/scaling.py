"""How time and memory grow with image size, width, batch, cases, processes and decoding steps; and what plan predicts.

    python benchmarks/scaling.py OUT [--rounds 3 --minutes 11 --docs docs/scaling.md --quick]

Each measurement is a process of its own. Times are medians over rounds, in each of which every measurement is done
once; another round begins only if it ends within ``--minutes``. These processes are forked after the imports. Memory
is measured once, in processes that were not forked: what is resident at most, less what is resident after the imports.

- Training: the command ``train`` with the shipped bundle's network, on virtual patients; the time is the median of its
  steps. ``plan`` predicts it by a few steps on three scans, and memory by running the network without data.
- Cases: the command ``embed``.
- Processes: ``torchrun`` with gloo, one thread each, always with the same images per step.
- Steps: decoding by a network with random weights. A fast decoder with as many evaluations should take about as long.

Writes ``scaling.json``, ``scaling.md`` (the tables) and ``scaling.png`` to OUT. ``--docs`` also puts tables and picture
into a page of the documentation. ``--quick`` uses tiny sizes, and shows that everything runs. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from decoding import ready_to_decode
from measured_process import run_python
from memory import measure_elsewhere, predict, resident, resident_before
from scaling_tables import Measurement, Point, draw, exponents, put_into_page, tables

import monai_diffae.handlers  # noqa: F401, before the processes are forked
from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.settings import Training
from monai_diffae.apps.training.plan import read_training_config
from monai_diffae.apps.training.speed import Speed, Work, measure_speed, open_machine
from monai_diffae.apps.training.train import train
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.engines.memory import GIB, inference_memory
from monai_diffae.engines.precision import resolve_precision

NUM_VAL = 2
DECODED = 4  # images at once
MEMORY_OF_STEPS = (1, 10, 50)  # where the memory of decoding is measured
FIELD_OF_VIEW_MM = 224  # of the virtual patients
MOST_STEPS = 50
ALONE = {  # a training without what it does beside its steps
    "max_epochs": 1, "num_pictures": 0, "calibration_cases": 0, "probe_interval": 0, "mlflow": False,
    "val_batch_size": NUM_VAL, "check_memory": False, "report_every": 1,
}  # fmt: skip


def all_points(is_quick: bool) -> list[Point]:
    """What is measured; points of several curves with the same settings share one measurement."""
    measurements: dict[str, Measurement] = {}

    def point(curve: str, label: str, x: int, kind: str, settings: dict[str, Any]) -> Point:
        key = json.dumps([kind, settings])
        return Point(curve, label, x, measurements.setdefault(key, Measurement(kind, settings)))

    def sizes(values: Iterable[int], dims: int, batch: int) -> list[Point]:
        return [
            point(
                f"image size, {dims}D",
                " x ".join([str(n)] * dims),
                n**dims,
                "training",
                training([n] * dims, 16, batch),
            )
            for n in values
        ]

    def training(image_size: list[int], width: int, batch: int) -> dict[str, Any]:
        return {"image_size": image_size, "base_channels": width, "batch_size": batch}

    def counts(curve: str, kind: str, values: Iterable[int]) -> list[Point]:
        return [point(curve, f"{value:,}", value, kind, {"count": value}) for value in values]

    size = [32, 32] if is_quick else [64, 64]
    widths, batches = ((8, 16), (4,)) if is_quick else ((8, 16, 32), (1, 4, 16))
    return [
        *sizes((32,) if is_quick else (32, 64, 96, 128), 2, batch=4),
        *sizes((16,) if is_quick else (16, 24, 32), 3, batch=1),
        *[point("`base_channels`", str(width), width, "training", training(size, width, 4)) for width in widths],
        *[point("`batch_size`", str(batch), batch, "training", training(size, 16, batch)) for batch in batches],
        *counts("cases", "embedding", (4, 8) if is_quick else (100, 400, 1600)),
        *counts("processes", "processes", (1, 2)),
        *counts("decoding steps", "decoding", (1, 2) if is_quick else (1, 2, 4, 10, 20, 50)),
    ]


@dataclass(frozen=True)
class Bench:
    """Bundles, cohorts and options of all measurements.

    Attributes:
        folder: for everything that is written on the way.
        seconds: for the steps of a training or the repeats of a decoding.
        is_quick: whether only a few images are read.
    """

    folder: Path
    seconds: float
    is_quick: bool

    @property
    def log(self) -> Path:
        """What the processes print."""
        return self.folder / "log.txt"

    @property
    def decoded_size(self) -> int:
        """The side of the images that are decoded."""
        return 32 if self.is_quick else 64

    def prepare(self) -> None:
        """Make cohorts, bundles, and an encoder for ``embed``."""
        number = 24 if self.is_quick else 1600
        for dims, patients in ((2, number), (3, 8 if self.is_quick else 40)):
            make_virtual_cohort(self.folder / f"cohort_{dims}d", num_patients=patients, size=32, spatial_dims=dims)
            init_bundle(self.bundle(dims), f"diffae_{dims}d")
        init_bundle(self.encoder, "diffae_2d")
        values = {**ALONE, "image_size": [32, 32]}
        train(self.encoder, self.table(2, 16), training=Training(overrides=values))

    @property
    def encoder(self) -> Path:
        """The trained bundle for ``embed``."""
        return self.folder / "encoder"

    def bundle(self, dims: int) -> Path:
        """An untrained bundle with the shipped configuration."""
        return self.folder / f"bundle_{dims}d"

    def table(self, dims: int, num_train: int) -> Path:
        """A table with at most so many patients for training and a few for validation."""
        folder = self.folder / f"cohort_{dims}d"
        rows = pd.read_csv(folder / "cohort.csv").iloc[: num_train + NUM_VAL]
        path = folder / f"train_{len(rows) - NUM_VAL}_{os.getpid()}.csv"
        splits = ["val"] * NUM_VAL + ["train"] * (len(rows) - NUM_VAL)
        rows.assign(split=splits).to_csv(path, index=False)
        return path

    def new_folder(self) -> Path:
        """For the results of this process."""
        return self.folder / f"out_{os.getpid()}_{time.monotonic_ns()}"

    def first_cases(self, number: int) -> Path:
        """A table with so many patients."""
        path = self.folder / "cohort_2d" / f"first_{number}.csv"
        pd.read_csv(path.with_name("cohort.csv")).head(number).to_csv(path, index=False)
        return path

    def values(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Values of the configuration for a training."""
        size = settings["image_size"]
        is_3d = len(size) == 3
        return {**ALONE, **settings, **({"spacing_mm": [FIELD_OF_VIEW_MM / n for n in size]} if is_3d else {})}

    def plan_speed(self, settings: dict[str, Any]) -> Speed:
        """What ``plan`` measures before it predicts how long a training takes."""
        dims, batch = len(settings["image_size"]), settings["batch_size"]
        table = self.table(dims, 3)
        parser = read_training_config(self.bundle(dims), [])
        parser.update({**self.values(settings), "dataset_dir": str(table)})
        items = [case.item() for case in read_cohort(table)][:3]
        return measure_speed(parser.get(), "cpu", items, batch)

    def train_seconds(self, settings: dict[str, Any], seconds_per_image: float) -> float:
        """Seconds per image of the command ``train``, for about ``self.seconds``."""
        dims, batch = len(settings["image_size"]), settings["batch_size"]
        steps = max(3, min(MOST_STEPS, round(self.seconds / seconds_per_image / batch)))
        out = self.new_folder()
        train(
            self.bundle(dims), self.table(dims, batch * steps), out, training=Training(overrides=self.values(settings))
        )
        return seconds_of_steps(out)

    def embed_seconds(self, cases: int) -> float:
        """Seconds of the command ``embed``, without the imports."""
        table, out = self.first_cases(cases), self.new_folder()
        start = time.perf_counter()
        embed(self.encoder, table, out, device="cpu")
        return time.perf_counter() - start

    def decode_seconds(self, steps: int) -> float:
        """Seconds per image of decoding a few images."""
        decode, _ = decoder(steps, self.decoded_size)
        decode()
        times: list[float] = []
        while not times or sum(times) < self.seconds:
            start = time.perf_counter()
            decode()
            times.append(time.perf_counter() - start)
        return statistics.median(times) / DECODED


def seconds_of_steps(folder: Path) -> float:
    """Seconds per image of a training's steps: the median, without the first step."""
    rates = pd.read_csv(folder / "curves.csv")["images_per_s"].dropna()
    return 1 / float(rates.iloc[1:].median())


def decoder(steps: int, size: int) -> tuple[Callable[[], torch.Tensor], torch.nn.Module]:
    """A decoding of a few images with the shipped 2D network, and the network."""
    inferer, network, images = ready_to_decode(
        "diffae_2d", torch.device("cpu"), DECODED, steps, {"image_size": [size] * 2}
    )
    z_sem, x_T = inferer.encode(images, network), torch.randn_like(images)
    return lambda: inferer.decode(z_sem, network, x_T), network


def forked(bench: Bench, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, whose output goes to the log."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork"), _to_log, (bench.log,)) as pool:
        return pool.submit(function, *arguments).result()


def _to_log(log: Path) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def finished(bench: Bench, command: list[str], threads: int | None = None) -> tuple[float, float]:
    """Seconds of a command, and the GiB that it or the largest of its processes had resident at most."""
    variables = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
    with bench.log.open("a") as log:
        used = run_python(command, variables, log)
    return used.seconds, used.peak_gib


@dataclass(frozen=True)
class Torchrun:
    """A training with ``torchrun``, of one or two processes with one thread each."""

    bench: Bench
    imports_gib: float

    @property
    def settings(self) -> dict[str, Any]:
        """Images of all processes together."""
        return {"image_size": [32, 32], "base_channels": 16, "batch_size": 4 if self.bench.is_quick else 16}

    @property
    def num_train(self) -> int:
        """Images of the training."""
        return 16 if self.bench.is_quick else 320

    def run(self, processes: int) -> tuple[float, float, float]:
        """Seconds per image, GiB beyond the imports, and seconds in all."""
        bundle, out = self.bench.bundle(2), self.bench.new_folder()
        configs = [str(bundle / "configs" / name) for name in ("train.json", "multi_gpu_train.json")]
        values = {
            **self.bench.values(self.settings), "batch_size": self.settings["batch_size"] // processes,
            "bundle_root": bundle, "dataset_dir": self.bench.table(2, self.num_train), "output_dir": out,
        }  # fmt: skip
        options = [str(x) for key, value in values.items() for x in (f"--{key}", value)]
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "monai.bundle"]
        command = [*launch, "run", "training", "--config_file", str(configs), *options]
        seconds, gib = finished(self.bench, command, threads=1)
        return seconds_of_steps(out), gib - self.imports_gib, seconds

    def plan(self) -> tuple[float, float, float]:
        """What ``plan`` predicts of the same for one process."""
        torch.set_num_threads(1)
        values = self.bench.values(self.settings)
        speed = self.bench.plan_speed(self.settings)
        parser = read_training_config(self.bench.bundle(2), [])
        given = {key: values[key] for key in ("max_epochs", "num_pictures", "calibration_cases", "probe_interval")}
        work = Work(self.num_train, NUM_VAL, {**parser.get(), **values}, given)
        machine = open_machine(parser.get(), values, 2**62, torch.device("cpu"))
        return 1 / speed.images_per_second, machine.predict({}).memory.gib, work.timetable(speed, 3600).total_s


def measure_times(bench: Bench, this: Measurement, torchrun: Torchrun) -> None:
    """One round of a measurement."""
    if this.kind == "training":
        speed = forked(bench, bench.plan_speed, this.settings)
        this.predicted_seconds.append(1 / speed.images_per_second)
        this.seconds.append(forked(bench, bench.train_seconds, this.settings, this.predicted_seconds[-1]))
        return
    count = this.settings["count"]
    if this.kind == "embedding":
        this.seconds.append(forked(bench, bench.embed_seconds, count))
    elif this.kind == "decoding":
        this.seconds.append(forked(bench, bench.decode_seconds, count))
    else:
        seconds, gib, in_all = torchrun.run(count)
        this.seconds.append(seconds)
        this.whole_seconds.append(in_all)
        this.memory_gib = max(gib, this.memory_gib or 0)
        if count == 1:
            predicted, this.predicted_gib, predicted_in_all = forked(bench, torchrun.plan)
            this.predicted_seconds.append(predicted)
            this.predicted_whole_seconds.append(predicted_in_all)


def measure_memory(bench: Bench, this: Measurement, imports_gib: float) -> None:
    """The memory of a measurement; that of ``processes`` is measured with their time."""
    if this.kind == "training":
        configuration = {**this.settings, "precision": "auto"}
        this.memory_gib = measure_elsewhere(configuration)
        this.predicted_gib = forked(bench, _predicted, configuration)
    elif this.kind == "embedding":
        cases, out = bench.first_cases(this.settings["count"]), bench.new_folder()
        options = ["--bundle", bench.encoder, "--cohort", cases, "--out", out, "--device", "cpu"]
        _, gib = finished(bench, ["-m", "monai_diffae", "embed", *map(str, options)])
        this.memory_gib = gib - imports_gib
    elif this.kind == "decoding" and this.settings["count"] in MEMORY_OF_STEPS:
        command = [sys.executable, __file__, "--decode", str(this.settings["count"]), str(bench.decoded_size)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        this.memory_gib, this.predicted_gib = map(float, printed.split()[-2:])


def _predicted(configuration: dict[str, Any]) -> float:
    return predict(**configuration)


def print_decoding_memory(steps: int, size: int) -> None:
    """The GiB of decoding a few images in this process, and what ``plan`` predicts of it."""
    before = resident_before()
    decode, network = decoder(steps, size)
    decode()
    measured = (resident("VmHWM") - before) / GIB
    print(measured, inference_memory(network, (DECODED, 1, size, size)).gib)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "precision": str(resolve_precision("auto", "cpu")).removeprefix("torch."),
        "load_before": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def run(bench: Bench, points: list[Point], rounds: int, minutes: float, imports_gib: float) -> None:
    """Measure all points, in as many rounds as there is time for."""
    start = time.monotonic()
    unique = list({id(point.measured): point for point in reversed(points)}.values())[::-1]
    torchrun = Torchrun(bench, imports_gib)

    def say(text: str) -> None:
        print(f"{(time.monotonic() - start) / 60:5.1f} min  {text}", file=sys.stderr, flush=True)

    forked(bench, bench.prepare)
    say("cohorts and bundles are made")
    kinds = {"processes"}
    for point in unique:
        if point.measured.kind not in kinds:
            measure_memory(bench, point.measured, imports_gib)
            say(f"memory: {point.curve} {point.label}")
        if bench.is_quick:  # one of each kind shows that it runs
            kinds.add(point.measured.kind)
    number, longest = 0, 0.0
    while number < rounds and (not number or time.monotonic() - start + longest < 60 * minutes):
        begin = time.monotonic()
        for point in unique if number % 2 == 0 else reversed(unique):
            measure_times(bench, point.measured, torchrun)
            say(f"round {number + 1}: {point.curve} {point.label}")
        number, longest = number + 1, max(longest, time.monotonic() - begin)


def main() -> None:
    imports_gib = resident("VmRSS") / GIB
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("scaling"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=11.0, help="no round begins that would end later")
    parser.add_argument("--seconds", type=float, default=2.0, help="for a training or a decoding, in each round")
    parser.add_argument("--docs", type=Path, help="page with the marks between which the tables belong")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to show that everything runs")
    parser.add_argument("--decode", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.decode:
        print_decoding_memory(*args.decode)
        return
    bench = Bench(args.out.resolve() / "work", 0.1 if args.quick else args.seconds, args.quick)
    shutil.rmtree(bench.folder, ignore_errors=True)
    bench.folder.mkdir(parents=True)
    machine_record, points = machine(), all_points(args.quick)
    try:
        run(bench, points, args.rounds, args.minutes, imports_gib)
    finally:  # also what was measured before an error
        machine_record["rounds"] = max(len(point.measured.seconds) for point in points)
        results = {
            "machine": machine_record,
            "exponents": exponents(points),
            "points": [asdict(point) for point in points],
        }
        (args.out / "scaling.json").write_text(json.dumps(results, indent=2))
        text = tables(points, machine_record)
        (args.out / "scaling.md").write_text(text)
    draw(points, args.out / "scaling.png")
    if args.docs:
        put_into_page(args.docs, text, args.out / "scaling.png")
    shutil.rmtree(bench.folder)
    print(text)


if __name__ == "__main__":
    main()
