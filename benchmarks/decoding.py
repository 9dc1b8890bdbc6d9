"""Rates of encoding, inversion and decoding, and what it saves to project z_sem once per decoding.

    python benchmarks/decoding.py [--recipes diffae_2d --images 1 16 --steps 20 --rounds 5 --device cpu]

Networks with random weights, which take as much time as trained ones. "z_sem at each step" decodes with the network
called as any other network is: it projects z_sem at every evaluation. All of them take turns with convolutions in
float32, so each rate is also printed as a share of the device's best convolution rate. Medians, and the ratio of both
ways to decode in each round. Also whether both ways, and two decodings, give the same bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from convolution_rate import best_rate, synchronise
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from train_step import RECIPES, recipe

from monai_diffae.inferers import DiffusionAutoencoderInferer


class AnyNetwork(nn.Module):
    """A network that the inferer does not know: it calls it with z_sem at each step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.spatial_dims = network.spatial_dims

    def forward(self, x: Tensor, t: Tensor, z_sem: Tensor) -> Tensor:
        """The network's output (B, C, *S)."""
        output: Tensor = self.network(x, t, z_sem)
        return output


def ready_to_decode(
    name: str, device: torch.device, count: int, steps: int, overrides: dict[str, Any]
) -> tuple[DiffusionAutoencoderInferer, nn.Module, Tensor]:
    """An inferer, the network of a recipe, and ``count`` images."""
    made = recipe(name, device, count, **overrides)
    network, images = made.network.eval().requires_grad_(False), made.images
    for parameter in network.parameters():
        if not parameter.any():  # layers that begin with 0 would hide what depends on z_sem
            nn.init.normal_(parameter, std=0.02)
    return DiffusionAutoencoderInferer(made.schedule, steps=steps, invert_tolerance=None), network, images


def measure(name: str, device: torch.device, count: int, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of a recipe with ``count`` images at once."""
    inferer, network, images = ready_to_decode(name, device, count, args.steps, args.overrides)
    z_sem = inferer.encode(images, network)
    x_T = torch.randn_like(images)
    other = AnyNetwork(network).eval()
    actions: dict[str, Callable[[], Tensor]] = {
        "encoding": lambda: inferer.encode(images, network),
        "inversion": lambda: inferer.invert(images, network, z_sem),
        "decoding": lambda: inferer.decode(z_sem, network, x_T),
        "decoding, z_sem at each step": lambda: inferer.decode(z_sem, other, x_T),
    }
    first, flop = {}, {}
    for what, action in actions.items():
        with FlopCounterMode(display=False) as counter:
            first[what] = action()
        flop[what] = counter.get_total_flops()
    best_rates: list[float] = []
    seconds: dict[str, list[float]] = {what: [] for what in actions}
    for number in range(args.rounds):
        best_rates.append(best_rate(device, torch.float32, args.rate_seconds))
        order = list(actions) if number % 2 else list(reversed(actions))
        for what in order:
            synchronise(device)
            start = time.perf_counter()
            for _ in range(args.repeats):
                actions[what]()
            synchronise(device)
            seconds[what].append((time.perf_counter() - start) / args.repeats)
    rate = statistics.median(best_rates)
    pairs = zip(seconds["decoding, z_sem at each step"], seconds["decoding"], strict=True)
    return {
        "images": count, "steps": args.steps,
        "images_per_second": {what: count / statistics.median(values) for what, values in seconds.items()},
        "best_convolution_tflops": rate / 1e12,
        "share_of_best_rate": {
            what: flop[what] / statistics.median(values) / rate for what, values in seconds.items()
        },
        "each_step_over_once": statistics.median(slow / fast for slow, fast in pairs),
        "both_ways_same_bits": torch.equal(first["decoding"], first["decoding, z_sem at each step"]),
        "largest_difference": float((first["decoding"] - first["decoding, z_sem at each step"]).abs().max()),
        "two_decodings_same_bits": torch.equal(first["decoding"], actions["decoding"]()),
        "two_inversions_same_bits": torch.equal(first["inversion"], actions["inversion"]()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["diffae_2d"])
    parser.add_argument("--images", nargs="+", type=int, default=[1, 16], help="images that are decoded at once")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1, help="decodings per round")
    parser.add_argument("--rate-seconds", type=float, default=1.0, help="per round, for the best convolution rate")
    parser.add_argument("--overrides", type=json.loads, default={}, help="values of the configuration, as JSON")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.manual_seed(0)
    results: dict[str, list[dict[str, Any]]] = {}
    for name in args.recipes:
        results[name] = [measure(name, args.device, count, args) for count in args.images]
        print(name, json.dumps(results[name], indent=2), sep="\n", flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
