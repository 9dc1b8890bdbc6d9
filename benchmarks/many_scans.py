"""How time and memory of prepare, train and embed grow with the number of scans, by one and by two processes.

    python benchmarks/many_scans.py OUT [--scans 1000 10000 100000]

The scans are virtual slices of 32 x 32 pixels; there are 1,000 different ones, and the others are copies. A
training of a tiny network sees each once. Training and embedding read what ``prepare`` has made. Two processes are
those of ``torchrun``, with one thread each; times are those of the whole program, with 10 s of imports. Memory is that
of the largest process, and the exponents are those of the two largest numbers. Prints a table for docs/scaling.md, also
written to OUT.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
from pathlib import Path

import pandas as pd
from measured_process import run_python
from scaling_tables import Measurement, Point, exponents

DIFFERENT = 1000
VALUES = {
    "image_size": [32, 32],
    "base_channels": 4,
    "channel_mult": [1, 2],
    "z_channels": 32,
    "batch_size": 64,
    "max_epochs": 1,
    "num_pictures": 0,
    "calibration_cases": 0,
    "probe_interval": 0,
    "mlflow": False,
    "check_memory": False,
    "network_def#encoder#base_channels": 4,
    "network_def#encoder#channel_mult": [1, 2],
}


def make_table(folder: Path, number: int) -> Path:
    """A table of so many scans, two of them for validation."""
    cohort = folder / "different" / "cohort.csv"
    if not cohort.exists():
        make = "import sys; from monai_diffae.data.samples import make_virtual_cohort as make; "
        run_python(["-c", f"{make}make(sys.argv[1], num_patients={DIFFERENT}, size=32)", str(cohort.parent)])
    files = [cohort.parent / name for name in pd.read_csv(cohort)["image"]]
    names = [f"scans/{i // 1000:03d}/{i:06d}{files[0].suffix}" for i in range(number)]
    for i, name in enumerate(names):
        copy = folder / name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files[i % DIFFERENT], copy)
    splits = ["val"] * 2 + ["train"] * (number - 2)
    path = folder / f"{number}.csv"
    pd.DataFrame({"image": names, "id": [f"s{i}" for i in range(number)], "split": splits}).to_csv(path, index=False)
    return path


def command(task: str, bundle: Path, table: Path, prepared: Path, processes: int) -> list[str]:
    """The words after ``python`` for a task; results are written to a new folder beside the files of ``prepare``."""
    out = prepared.with_name(f"{prepared.name}_{task}")
    shutil.rmtree(out, ignore_errors=True)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    if task == "train":
        names = ["train.json"] if processes == 1 else ["train.json", "multi_gpu_train.json"]
        configs = [str(bundle / "configs" / name) for name in names]
        values = {
            **VALUES,
            "batch_size": VALUES["batch_size"] // processes,
            "bundle_root": bundle,
            "dataset_dir": table,
            "output_dir": out,
            "cache_dir": prepared,
        }
        options = [str(x) for key, value in values.items() for x in (f"--{key}", value)]
        words = ["-m", "monai.bundle", "run", "training", "--config_file", str(configs), *options]
    else:
        where = [str(prepared)] if task == "prepare" else [str(out), "--cache-dir", str(prepared)]
        words = ["-m", "monai_diffae", task, str(bundle), str(table), *where]
    return words if processes == 1 else [*launch, *words]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scans", type=int, nargs="+", default=[1000, 10_000, 100_000])
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    bundle, variables = out / "bundle", {**os.environ, "OMP_NUM_THREADS": "1"}
    points: list[Point] = []
    with (out / "log.txt").open("a") as log:
        if not bundle.is_dir():
            run_python(["-m", "monai_diffae", "init", str(bundle), "--bundle", "diffae_2d"], variables, log)
            words = command("train", bundle, make_table(out, DIFFERENT), out / "first", 1)
            run_python([*words, "--output_dir", str(bundle)], variables, log)
        for number in arguments.scans:
            table = make_table(out, number)
            for processes in (1, 2):
                prepared = out / f"prepared_{number}_{processes}"
                shutil.rmtree(prepared, ignore_errors=True)
                for task in ("prepare", "train", "embed"):
                    used = run_python(command(task, bundle, table, prepared, processes), variables, log)
                    measured = Measurement(task, {"processes": processes}, [used.seconds])
                    measured.memory_gib, measured.settings["processors"] = used.peak_gib, used.processor_seconds
                    points.append(Point(f"`{task}`, {processes}", f"{number:,}", number, measured))
                    print(
                        f"{task}, {processes}, {number:,}: {used.seconds:.1f} s, "
                        f"{used.processor_seconds:.1f} s of processors",
                        file=sys.stderr,
                        flush=True,
                    )
                shutil.rmtree(prepared)
    text = as_table(points, arguments.scans)
    (out / "many_scans.md").write_text(text)
    print(text)


def as_table(points: list[Point], numbers: list[int]) -> str:
    """One row per command and number of processes, in Markdown."""
    titles = [f"{number:,} scans" for number in numbers]
    lines = [
        f"| command, processes | {' | '.join(titles)} | exponent, time | processors | memory, GiB |",
        "|---" * (len(titles) + 4) + "|",
    ]
    for name in dict.fromkeys(point.curve for point in points):
        found = [point.measured for point in points if point.curve == name]
        grows = exponents([point for point in points if point.curve == name][-2:])[name]["time"]
        used = [each.settings["processors"] for each in found[-2:]]
        work = math.log(used[-1] / used[0]) / math.log(numbers[-1] / numbers[-2])
        seconds = [f"{each.seconds[0]:.0f} s" for each in found]
        memory = " to ".join(f"{each.memory_gib:.2f}" for each in (found[0], found[-1]))
        lines.append(f"| {name} | {' | '.join(seconds)} | {grows:.2f} | {work:.2f} | {memory} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
