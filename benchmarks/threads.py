"""Training and decoding with one thread and with all, alone and beside other programs that use every core.

    python benchmarks/threads.py [--size 32 --base-channels 16 --batch-size 16 --rounds 3 --seconds 5]

Each measurement is a process of its own, interleaved: one thread; all threads as OpenMP has them (they keep their
processors busy while they wait); all threads as every command of ``monai-diffae`` runs them: they sleep while they wait
as long as other programs use the processors; all threads with ``OMP_WAIT_POLICY=PASSIVE``. Prints the medians: training
images per second, and network evaluations of single images per second.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

CORES = os.cpu_count() or 1
SETTINGS: dict[str, tuple[int, dict[str, str], bool]] = {  # threads, environment, whether commands run like this
    "one thread": (1, {}, False),
    "all threads": (CORES, {}, False),
    "all threads, as in commands": (CORES, {}, True),
    "all threads, passive": (CORES, {"OMP_WAIT_POLICY": "PASSIVE"}, False),
}


def work(args: argparse.Namespace) -> None:
    """Train, then decode; prints both rates."""
    import torch
    from train_step import default_step

    from monai_diffae.cli.waiting import considerate_waiting
    from monai_diffae.diffusion import DiffusionSchedule
    from monai_diffae.engines.precision import resolve_precision
    from monai_diffae.networks import build_autoencoder

    torch.manual_seed(0)
    network = build_autoencoder(2, base_channels=args.base_channels, channel_mult=(1, 2, 4), z_channels=128)
    images = torch.rand(args.batch_size, 1, args.size, args.size) * 2 - 1
    step = default_step(
        network.train(), DiffusionSchedule(prediction="v"), resolve_precision("auto", "cpu"), channels_last=True
    )

    def rate(action: object) -> float:
        end, times = time.perf_counter() + args.seconds, 0
        start = time.perf_counter()
        while time.perf_counter() < end:
            action()  # type: ignore[operator]
            times += 1
        return times / (time.perf_counter() - start)

    with considerate_waiting() if args.considerate else nullcontext():
        step(images)
        time.sleep(3 if args.considerate else 0)  # until it has looked what other programs use
        training = args.batch_size * rate(lambda: step(images))
        network.eval()
        with torch.inference_mode():
            z_sem, t = network.encode(images[:1]), torch.tensor([500])
            decoding = rate(lambda: network(images[:1], t, z_sem))
    print(training, decoding)


def measure(name: str, arguments: list[str]) -> list[float]:
    """One process with a setting."""
    threads, environment, considerate = SETTINGS[name]
    variables = {**os.environ, **environment, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, *arguments, "--work", *(["--considerate"] if considerate else [])]
    output = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [float(number) for number in output.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--base-channels", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--considerate", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    rates: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(args.rounds):
        for load in ("alone", "beside"):
            number = CORES if load == "beside" else 0
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
            try:
                for name in SETTINGS:
                    rates.setdefault((load, name), []).append(measure(name, sys.argv[1:]))
            finally:
                for other in others:
                    other.kill()
    print(f"{platform.processor() or platform.machine()}, {CORES} cores; medians of {args.rounds} rounds")
    for (load, name), values in rates.items():
        training, decoding = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{load:7s} {name:28s} {training:7.2f} images/s in training, {decoding:7.2f} evaluations/s in decoding")


if __name__ == "__main__":
    main()
