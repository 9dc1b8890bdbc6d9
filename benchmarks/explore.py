"""How long the page of ``explore`` waits for an image: the time of its requests, without the browser.

    python benchmarks/explore.py OUT [--size 64] [--moves 20]

A 2D bundle of the given image size, with the shipped network and weights that know nothing (its time does not depend
on the weights), explores a small virtual cohort. Each move of a slider is measured as a preview and as a full image;
``first`` is a case that has not been opened before, which is inverted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from monai_diffae import train
from monai_diffae.apps.settings import Decoding, Reading, Run
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.data import make_virtual_cohort
from monai_diffae.explorer.exploration import Caller, Exploration, Quality, Recipe, open_exploration


def opened(out: Path, size: int) -> Exploration:
    """A page of a bundle that was trained for one epoch."""
    cohort = make_virtual_cohort(out / "cohort", num_patients=16, size=size)
    values = {"image_size": [size, size], "max_epochs": 1, "batch_size": 4, "num_pictures": 0, "mlflow": False}
    train(init_bundle(out / "bundle", "diffae_2d"), cohort, overrides=values, device="cpu")
    caller = Caller(out / "bundle", cohort, None, Decoding(), Reading(), Run(device="cpu"))
    return open_exploration(caller, out, (), 4)


def milliseconds(act: Callable[[], object]) -> tuple[float, float]:
    """The duration of a call, and the time of the processor, which other programs hardly change."""
    start = time.perf_counter(), time.process_time()
    act()
    return 1000 * (time.perf_counter() - start[0]), 1000 * (time.process_time() - start[1])


def median(times: Sequence[tuple[float, float]]) -> str:
    """The medians as text."""
    wall, processor = (statistics.median(each) for each in zip(*times, strict=True))
    return f"median {wall:.0f} ms (of the processor {processor:.0f} ms)"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--moves", type=int, default=20)
    arguments = parser.parse_args()
    page = opened(arguments.out, arguments.size)
    page.outliers()
    firsts = [milliseconds(partial(page.image, Recipe(case=row), "a", "preview")) for row in range(4)]
    print(f"first: {median(firsts)}", flush=True)
    qualities: tuple[Quality, ...] = ("preview", "full")
    for quality in qualities:
        times = []
        for move in range(arguments.moves):
            recipe = Recipe(case=0, moves={"1": 0.1 * move + 0.1})
            times.append(milliseconds(partial(page.image, recipe, "a", quality)))
        steps = page.studio.preview_steps if quality == "preview" else page.studio.steps
        print(f"{quality}: {median(times)}, {steps} evaluations", flush=True)
    page.close()


if __name__ == "__main__":
    main()
