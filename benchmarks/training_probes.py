"""What a probe during training costs: encoding its images, and probing labels.

    python benchmarks/training_probes.py BUNDLE [--train 1000 --val 500 --rounds 3]

Images are noise of the bundle's size, as the time does not depend on them. Prints medians of the processor's time in
seconds, which other programs hardly change; with several threads it is the sum of them (OMP_NUM_THREADS=1: one).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from monai_diffae.bundle import load_bundle
from monai_diffae.latents.probing.nested import QuickProbe


def median_seconds(rounds: int, call: Callable[[], object]) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--val", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    trained = load_bundle(args.bundle)
    count, batch = args.train + args.val, torch.randn(50, *trained.image_shape, device=trained.device)

    @torch.no_grad()
    def encode() -> None:
        trained.inferer.encode(batch, trained.network).cpu()

    encode()
    encoding = median_seconds(args.rounds, encode) * count / len(batch)
    print(f"{count} images of {trained.image_shape} on {trained.device}: {encoding:.1f} s to encode")
    rng = np.random.default_rng(0)
    z, noise = rng.normal(size=(count, trained.z_channels)), rng.normal(size=count)
    labels = {
        "a number": list(z[:, 0] + noise),
        "two classes": list(z[:, 0] + noise > 0),
        "five classes": [str(value) for value in np.clip(np.round(z[:, 0] + noise), -2, 2)],
    }
    for kind, values in labels.items():
        probe = QuickProbe.choose(values, kind, np.arange(count), np.arange(count) < args.train)
        seconds = median_seconds(args.rounds, partial(probe.scores, z))
        print(f"{kind}, z_sem of {trained.z_channels}: {seconds:.2f} s")


if __name__ == "__main__":
    main()
