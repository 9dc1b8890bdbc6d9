"""The default train step beside a plain fp32 eager one, of the same network, interleaved.

    python benchmarks/train_step.py [--preset paper_64 --batch-size 8 --size 64 --rounds 5]

Plain: fp32, contiguous tensors, torch's default AdamW (a loop over tensors on CPUs), an EMA that loops over tensors.
Default: what ``bundles/diffae_2d`` does on this machine: precision ``auto``, channels_last, fused AdamW, our EMA.
Prints medians, the ratio and the machine.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.engines.precision import cpu_has_bf16, resolve_precision
from monai_diffae.handlers import EMA
from monai_diffae.networks import preset


def plain_step(network: nn.Module, schedule: DiffusionSchedule) -> Callable[[torch.Tensor], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, foreach=False)
    average = copy.deepcopy(network)

    def step(x0: torch.Tensor) -> None:
        t, eps = schedule.sample_timesteps(len(x0)), torch.randn_like(x0)
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
    network: nn.Module, schedule: DiffusionSchedule, dtype: torch.dtype, channels_last: bool
) -> Callable[[torch.Tensor], None]:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network.to(memory_format=memory_format)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    average = EMA(network, decay=0.9999)

    def step(x0: torch.Tensor) -> None:
        x0 = x0.to(memory_format=memory_format)
        t, eps = schedule.sample_timesteps(len(x0)), torch.randn_like(x0)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = network(schedule.q_sample(x0, eps, t), t, x0)
        (output.float() - schedule.target(x0, eps, t)).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper_64")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contiguous", action="store_true", help="the default step without channels_last")
    args = parser.parse_args()

    torch.manual_seed(0)
    schedule = DiffusionSchedule(prediction="eps")
    network = preset(args.preset).train()
    dtype = resolve_precision("auto", "cpu")
    steps = {
        "plain fp32": plain_step(copy.deepcopy(network), schedule),
        f"default ({str(dtype).removeprefix('torch.')})": default_step(network, schedule, dtype, not args.contiguous),
    }
    x0 = torch.rand(args.batch_size, 1, args.size, args.size) * 2 - 1
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(args.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step(x0)
            if round_number:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"bf16 instructions: {'yes' if cpu_has_bf16() else 'no'}, {torch.backends.cpu.get_cpu_capability()}"
    )
    for name, median in medians.items():
        print(f"{name:20s} {median:.2f} s a step (all: {', '.join(f'{s:.2f}' for s in seconds[name])})")
    plain, default = medians.values()
    print(f"the default is {plain / default:.2f} times as fast")


if __name__ == "__main__":
    main()
