"""Training, decoding and embedding with one thread and with all, alone and beside programs that use every core.

    python benchmarks/threads.py [--size 32 --base-channels 16 --batch 16 --rounds 3 --seconds 6]

Each setting is a process that waits for its turn: one thread; and all threads, which spin for some time while they wait
for each other before they sleep (``GOMP_SPINCOUNT``). The commands of ``monai-diffae`` use 1,000.

Prints medians: training images per second, network evaluations per second when single images and batches are decoded,
and embedded images per second.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

CORES = os.cpu_count() or 1
SETTINGS: dict[str, dict[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "all threads": {"OMP_NUM_THREADS": str(CORES)},
    **{f"spin {n:,}": {"OMP_NUM_THREADS": str(CORES), "GOMP_SPINCOUNT": str(n)} for n in (1000, 10_000, 100_000)},
}
TASKS = {
    "training": "images/s", "decoding single images": "evaluations/s", "decoding batches": "evaluations/s",
    "embedding batches": "images/s",
}  # fmt: skip
_STEPS = 10


def measured_tasks(args: argparse.Namespace) -> dict[str, tuple[Callable[[], object], int]]:
    """Each of :data:`TASKS`: an action, and how many of the task's units it is."""
    import torch
    from train_step import default_step

    from monai_diffae.diffusion import DiffusionSchedule
    from monai_diffae.engines.precision import resolve_precision
    from monai_diffae.inferers import DiffusionAutoencoderInferer, encode_exactly
    from monai_diffae.networks import build_autoencoder

    torch.manual_seed(0)
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v", clip_range=(-1, 1))
    shape = {"base_channels": args.base_channels, "channel_mult": (1, 2, 4), "z_channels": 128}
    trained, network = build_autoencoder(2, **shape), build_autoencoder(2, **shape).eval()
    images = torch.rand(args.batch, 1, args.size, args.size) * 2 - 1
    step = default_step(trained.train(), schedule, resolve_precision("auto", "cpu"), channels_last=True)
    inferer = DiffusionAutoencoderInferer(schedule, steps=_STEPS)
    z_sem, x_T = inferer.encode(images, network), torch.randn_like(images)
    return {
        "training": (lambda: step(images), args.batch),
        "decoding single images": (lambda: inferer.decode(z_sem[:1], network, x_T[:1]), _STEPS),
        "decoding batches": (lambda: inferer.decode(z_sem, network, x_T), _STEPS),
        "embedding batches": (lambda: encode_exactly(images, network, inferer), args.batch),
    }


def work(args: argparse.Namespace) -> None:
    """Measure all tasks and print their rates, each time that a line is read."""
    tasks = measured_tasks(args)
    for action, _ in tasks.values():
        action()
    print("ready", flush=True)
    for _ in sys.stdin:
        rates = []
        for action, units in tasks.values():
            action()
            start, times = time.perf_counter(), 0
            while time.perf_counter() < start + args.seconds:
                action()
                times += 1
            rates.append(units * times / (time.perf_counter() - start))
        print(*rates, flush=True)


def started(setting: str, arguments: list[str]) -> subprocess.Popen[str]:
    """The process of a setting."""
    given = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in given}
    return subprocess.Popen(
        [sys.executable, __file__, *arguments, "--work", setting],
        env={**environment, **SETTINGS[setting]}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def answer(process: subprocess.Popen[str]) -> str:
    """The next line of a process."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a measuring process ended; its error is above")
    return line


def rates_of(process: subprocess.Popen[str]) -> list[float]:
    """Let a process measure."""
    assert process.stdin is not None
    print(file=process.stdin, flush=True)
    return [float(number) for number in answer(process).split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--base-channels", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16, help="images of a batch, in training, decoding and embedding")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each task of each setting in each round")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    rates: dict[str, dict[str, list[list[float]]]] = {
        load: {name: [] for name in SETTINGS} for load in ("alone", "beside")
    }
    with ExitStack() as stack:
        processes = {name: started(name, sys.argv[1:]) for name in SETTINGS}
        for process in processes.values():
            stack.callback(process.kill)
        for process in processes.values():
            answer(process)
        for _ in range(args.rounds):
            for load, by_setting in rates.items():
                number = CORES if load == "beside" else 0
                others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
                try:
                    for name, process in processes.items():
                        by_setting[name].append(rates_of(process))
                finally:
                    for other in others:
                        other.kill()
    print(f"{platform.processor() or platform.machine()}, {CORES} cores; medians of {args.rounds} rounds")
    for load, by_setting in rates.items():
        print(f"{load}:")
        medians = {name: [statistics.median(v) for v in zip(*rows, strict=True)] for name, rows in by_setting.items()}
        for name, values in medians.items():
            shown = (f"{task} {value:.2f} {unit}" for (task, unit), value in zip(TASKS.items(), values, strict=True))
            print(f"  {name:20s} {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
