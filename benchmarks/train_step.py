"""The default train step beside a plain fp32 eager one and other variants, of the same network, interleaved.

    python benchmarks/train_step.py [--recipes paper_64 --batch-size 8 --variants plain default --rounds 5]

Recipes: the shipped bundles, or ``diffae_2d`` with one of its overlays. Variants:

- plain: fp32, contiguous tensors, torch's default AdamW (a loop over tensors on CPUs), an EMA that loops over tensors.
- default: what the bundles do on this device: precision ``auto``, channels_last, fused AdamW, our EMA.
- fp32, bf16: the same in this precision. contiguous: the same without channels_last. compiled: the same with
  ``torch.compile``.

Prints medians, images per second, the share of the device's best convolution rate in the same precision, and on a GPU
the peak memory. ``--json`` writes them. ``--profile`` prints which operations of a default step take the time.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from convolution_rate import best_rate, synchronise
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from monai_diffae.bundle.layout import shipped
from monai_diffae.bundle.loading import load_untrained
from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.engines.precision import autocast, cpu_has_bf16, resolve_precision
from monai_diffae.engines.trainer import memory_format
from monai_diffae.handlers import EMA
from monai_diffae.networks.kernels import reproducible_kernels

RECIPES = {  # bundle and overlay
    "diffae_2d": ("diffae_2d", None), "gpu": ("diffae_2d", "gpu"), "paper_64": ("diffae_2d", "paper_64"),
    "paper_128": ("diffae_2d", "paper_128"), "diffae_3d": ("diffae_3d", None),
}  # fmt: skip
VARIANTS = ("plain", "default", "fp32", "bf16", "contiguous", "compiled")
GIB = 2**30


@dataclass(frozen=True)
class Recipe:
    """A network with random weights, the schedule of its training, and a batch of images."""

    network: nn.Module
    schedule: DiffusionSchedule
    images: Tensor


def recipe(name: str, device: torch.device, batch_size: int | None = None, **overrides: Any) -> Recipe:
    """A recipe by its name; ``overrides`` are values of its configuration."""
    bundle, overlay = RECIPES[name]
    values = json.loads((shipped("overlays") / f"{overlay}.json").read_text()) if overlay else {}
    training = json.loads((shipped("bundles") / bundle / "configs" / "train.json").read_text())
    count = batch_size or int(values.get("batch_size", training["batch_size"]))
    trained = load_untrained(bundle, device, {**values, **overrides})
    shape = (count, int(trained.config["in_channels"]), *trained.config["image_size"])
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = trained.network.requires_grad_(True).train()
    return Recipe(network, trained.inferer.schedule.to(device), images.to(device))


def draw(schedule: DiffusionSchedule, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Timesteps and noise of a step."""
    return schedule.sample_timesteps(len(x0)).to(x0.device, non_blocking=True), torch.randn_like(x0)


def plain_step(network: nn.Module, schedule: DiffusionSchedule) -> Callable[[Tensor], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, foreach=False)
    average = copy.deepcopy(network)

    def step(x0: Tensor) -> None:
        t, eps = draw(schedule, x0)
        optimizer.zero_grad()
        output = network(schedule.q_sample(x0, eps, t), t, x0)
        (output - schedule.target(x0, eps, t)).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for kept, current in zip(average.parameters(), network.parameters(), strict=True):
                kept.mul_(0.9999).add_(current, alpha=0.0001)

    return step


def default_step(
    network: nn.Module,
    schedule: DiffusionSchedule,
    dtype: torch.dtype,
    channels_last: bool,
    is_compiled: bool = False,
) -> Callable[[Tensor], None]:
    layout = memory_format(network, channels_last)
    network.to(memory_format=layout)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    average = EMA(network, decay=0.9999)
    denoise = torch.compile(network) if is_compiled else network

    def step(x0: Tensor) -> None:
        x0 = x0.to(memory_format=layout)
        t, eps = draw(schedule, x0)
        optimizer.zero_grad(set_to_none=True)
        with autocast(x0.device, dtype):
            output = denoise(schedule.q_sample(x0, eps, t), t, x0)
        (output.float() - schedule.target(x0, eps, t)).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update()

    return step


def variant(name: str, made: Recipe) -> tuple[Callable[[Tensor], None], torch.dtype]:
    """A train step, and the precision of its convolutions."""
    network, device = copy.deepcopy(made.network), made.images.device
    if name == "plain":
        return plain_step(network, made.schedule), torch.float32
    dtype = resolve_precision(name if name in ("fp32", "bf16") else "auto", device)  # type: ignore[arg-type]
    return default_step(network, made.schedule, dtype, name != "contiguous", name == "compiled"), dtype


def peak_gib(step: Callable[[Tensor], None], x0: Tensor, allocated_before: int) -> float | None:
    """The most memory of a GPU that a step and its weights, gradients and moments take."""
    if x0.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(x0.device)
    step(x0)
    return float(torch.cuda.max_memory_allocated(x0.device) - allocated_before) / GIB


def measure(made: Recipe, names: list[str], rounds: int, steps: int, rate_seconds: float) -> dict[str, Any]:
    """Figures of each variant; all variants take turns."""
    device, x0 = made.images.device, made.images
    all_steps, dtypes, peaks, flop = {}, {}, {}, 0
    for name in names:
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        all_steps[name], dtypes[name] = variant(name, made)
        if name != "compiled" and not flop:
            with FlopCounterMode(display=False) as counter:
                all_steps[name](x0)
            flop = counter.get_total_flops()
        all_steps[name](x0)
        peaks[name] = peak_gib(all_steps[name], x0, before)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, step in all_steps.items():
            synchronise(device)
            start = time.perf_counter()
            for _ in range(steps):
                step(x0)
            synchronise(device)
            seconds[name].append((time.perf_counter() - start) / steps)
    best = {dtype: best_rate(device, dtype, rate_seconds) for dtype in set(dtypes.values())}
    variants = {}
    for name in names:
        median = statistics.median(seconds[name])
        variants[name] = {
            "precision": str(dtypes[name]).removeprefix("torch."), "seconds_per_step": median, "all": seconds[name],
            "images_per_second": len(x0) / median, "best_convolution_tflops": best[dtypes[name]] / 1e12,
            "share_of_best_rate": flop / median / best[dtypes[name]] if flop else None, "peak_gib": peaks[name],
        }  # fmt: skip
    return {"images": list(x0.shape), "gflop_per_step": flop / 1e9, "variants": variants}


def profile(made: Recipe) -> str:
    """A table of the operations of a default step."""
    step, _ = variant("default", made)
    step(made.images)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if made.images.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        step(made.images)
        synchronise(made.images.device)
    key = "self_cuda_time_total" if made.images.device.type == "cuda" else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=key, row_limit=25))


def shown(figures: dict[str, Any]) -> str:
    """The figures of a recipe as lines."""
    lines = []
    for name, row in figures["variants"].items():
        share = "" if row["share_of_best_rate"] is None else f", {row['share_of_best_rate']:.0%} of the best rate"
        peak = "" if row["peak_gib"] is None else f", {row['peak_gib']:.2f} GiB"
        rounds = ", ".join(f"{value:.3g}" for value in row["all"])
        lines.append(
            f"  {name} ({row['precision']}): {row['seconds_per_step']:.3g} s a step (all: {rounds}), "
            f"{row['images_per_second']:.3g} images/s{share}{peak}"
        )
    times = [row["seconds_per_step"] for row in figures["variants"].values()]
    if len(times) > 1:
        lines.append("  relative speed: " + ", ".join(f"{times[0] / value:.2f}" for value in times))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["paper_64"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain", "default"])
    parser.add_argument("--batch-size", type=int, help="by default that of the recipe")
    parser.add_argument("--overrides", type=json.loads, default={}, help="values of the configuration, as JSON")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps per round")
    parser.add_argument("--rate-seconds", type=float, default=2.0, help="time to find the best convolution rate")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", action="store_true", help="print the operations of a default step instead")
    args = parser.parse_args()

    torch.manual_seed(0)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{args.device}, bf16 instructions of the CPU: {'yes' if cpu_has_bf16() else 'no'}"
    )
    results: dict[str, Any] = {}
    for name in args.recipes:
        made = recipe(name, args.device, args.batch_size, **args.overrides)
        with reproducible_kernels(args.device):
            if args.profile:
                print(name, profile(made), sep="\n", flush=True)
                continue
            try:
                results[name] = measure(made, args.variants, args.rounds, args.steps, args.rate_seconds)
                print(name, shown(results[name]), sep="\n", flush=True)
            except torch.OutOfMemoryError as error:
                results[name] = {"failed": str(error).splitlines()[0]}
        if args.json:
            args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
