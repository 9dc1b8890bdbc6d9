"""All that this project measures on a GPU, in ten minutes, as one JSON file; ``gpu.sh`` runs it.

    python benchmarks/gpu.py [--out gpu.json] [--device cuda] [--minutes 10] [--quick]

Each part is one of the other programs of this folder, in a process of its own:

- checks: the losses of a GPU and a CPU agree, two trainings and two decodings are the same to the bit, and a training
  that was stopped and resumed equals an uninterrupted one.
- training: images per second, share of the best convolution rate, and peak memory of the shipped recipes in bf16 and
  fp32, with and without channels_last and ``torch.compile`` (``train_step.py``).
- decoding: rates of encoding, inversion and decoding (``decoding.py``).
- embedding: cases per second of reading, encoding, and ``embed`` (``embedding.py``).
- memory: predicted and measured (``memory.py``).

A part that fails or finds no time is listed in ``failed``; the others are written nevertheless. ``--quick`` uses tiny
networks, and shows that everything runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from convolution_rate import best_rate
from train_step import recipe

from monai_diffae.apps.settings import Training
from monai_diffae.apps.training import train_with_callbacks
from monai_diffae.bundle import load_bundle
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.engines.precision import resolve_precision

HERE = Path(__file__).parent
TINY = {"base_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_levels": [], "z_channels": 8}
SMALL_TRAINING = {
    **TINY, "image_size": [32, 32], "max_epochs": 2, "batch_size": 8, "val_batch_size": 8, "num_pictures": 0,
    "probe_interval": 0, "calibration_cases": 0, "mlflow": False, "check_memory": False,
}  # fmt: skip


def machine(device: torch.device, is_quick: bool) -> dict[str, Any]:
    """What the figures depend on, with the device's best convolution rates."""
    is_cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if is_cuda else None
    seconds = 0.2 if is_quick else 4.0
    return {
        "device": properties.name if properties else platform.processor() or platform.machine(),
        "memory_gib": properties.total_memory / 2**30 if properties else None,
        "capability": list(torch.cuda.get_device_capability(device)) if is_cuda else None,
        "torch": torch.__version__, "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if is_cuda else None, "python": platform.python_version(),
        "cpu_threads": torch.get_num_threads(), "auto_precision": str(resolve_precision("auto", device)),
        "best_convolution_tflops": {
            name: best_rate(device, dtype, seconds) / 1e12
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        },
    }  # fmt: skip


def losses(device: torch.device, steps: int = 5) -> list[float]:
    """The losses of a few float32 steps with the same weights, images and noise on every device."""
    made = recipe("diffae_2d", device, 4, **{**TINY, "image_size": [32, 32]})
    optimizer = torch.optim.AdamW(made.network.parameters(), lr=1e-3, fused=True)
    generator, values = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        t = made.schedule.sample_timesteps(4, generator).to(device)
        eps = torch.randn(made.images.shape, generator=generator).to(device)
        optimizer.zero_grad()
        output = made.network(made.schedule.q_sample(made.images, eps, t), t, made.images)
        loss = (output - made.schedule.target(made.images, eps, t)).square().mean()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    return values


def trained(bundle: Path, cohort: Path, out: Path, device: torch.device, stops_once: bool = False) -> dict[str, Any]:
    """The weights of a small training; with ``stops_once``, it is stopped in its first epoch and resumed."""
    training = Training(overrides=SMALL_TRAINING, device=str(device))
    if stops_once:
        stop = threading.Event()
        stop.set()  # a checkpoint is saved at the first step
        assert train_with_callbacks(bundle, cohort, out, training=training, stop=stop).is_stopped
    train_with_callbacks(bundle, cohort, out, training=training)
    return dict(load_bundle(out, "cpu").network.state_dict())


def checks(device: torch.device, cohort: Path, folder: Path) -> dict[str, Any]:
    """What must hold on every device."""
    bundle = init_bundle(folder / "bundle", "diffae_2d")
    here, cpu = losses(device), losses(torch.device("cpu"))
    once = trained(bundle, cohort, folder / "once", device)
    again = trained(bundle, cohort, folder / "again", device)
    resumed = trained(bundle, cohort, folder / "resumed", device, stops_once=True)

    def is_same(other: dict[str, Any]) -> bool:
        return once.keys() == other.keys() and all(torch.equal(once[name], other[name]) for name in once)

    difference = max(abs(a - b) / abs(b) for a, b in zip(here, cpu, strict=True))
    return {
        "losses": here, "losses_cpu": cpu, "largest_relative_difference": difference, "losses_agree": difference < 1e-3,
        "two_trainings_same_bits": is_same(again), "resume_is_exact": is_same(resumed),
    }  # fmt: skip


def parts(args: argparse.Namespace, folder: Path) -> dict[str, tuple[str, list[str]]]:
    """The program of each part and its arguments, the most important part first."""
    tiny = ["--overrides", json.dumps(TINY)]
    device = ["--device", str(args.device)]
    inputs = [str(folder / "bundle"), str(folder / "cohort" / "cohort.csv")]
    with_memory = {
        "checks": ("gpu.py", ["--checks", inputs[1], *device]),
        "training": ("train_step.py", [
            "--recipes", "diffae_2d", "gpu", "paper_64", "paper_128", "diffae_3d", *device,
            "--variants", "bf16", "fp32", "contiguous", "compiled", "--rounds", "3", "--steps", "10",
        ]),
        "decoding": ("decoding.py", [
            "--recipes", "diffae_2d", "paper_64", "diffae_3d", "--images", "1", "64", "--rounds", "3", *device
        ]),
        "embedding": ("embedding.py", [*inputs, "--rounds", "2", "--workers", "4", *device]),
        "memory": ("memory.py", device),
    }  # fmt: skip
    if not args.quick:
        return with_memory
    return {
        "checks": with_memory["checks"],
        "training": ("train_step.py", [
            "--recipes", "diffae_2d", "paper_64", "diffae_3d", "--variants", "default", "fp32", *device, *tiny,
            "--batch-size", "2", "--rounds", "1", "--rate-seconds", "0.2",
        ]),
        "decoding": ("decoding.py", [
            "--images", "1", "--rounds", "1", "--steps", "2", "--recipes", "diffae_2d", "diffae_3d", *device, *tiny
        ]),
        "embedding": ("embedding.py", [*inputs, "--rounds", "1", "--workers", "0", *device]),
        "memory": ("memory.py", [*device, "--first", "1"]),
    }  # fmt: skip


def run_parts(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The JSON of each part, and the messages of those that failed."""
    end = time.monotonic() + 60 * args.minutes
    results: dict[str, Any] = {"machine": machine(args.device, args.quick), "quick": args.quick, "failed": {}}
    cohort = make_virtual_cohort(folder / "cohort", num_patients=40 if args.quick else 400, size=32)
    bundle = init_bundle(folder / "bundle", "diffae_2d")
    trained(bundle, cohort, bundle, args.device)
    for name, (program, arguments) in parts(args, folder).items():
        file, start = folder / f"{name}.json", time.monotonic()
        command = [sys.executable, str(HERE / program), *arguments, "--json", str(file)]
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            subprocess.run(command, check=True, timeout=max(1, end - start), stdout=sys.stderr)
        except subprocess.TimeoutExpired:
            results["failed"][name] = "no time left"
        except subprocess.CalledProcessError as error:
            results["failed"][name] = f"exit code {error.returncode}"
        if file.is_file():
            results[name] = json.loads(file.read_text())
        results.setdefault("seconds", {})[name] = round(time.monotonic() - start, 1)
        args.out.write_text(json.dumps(results, indent=2))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true", help="tiny networks, to show that everything runs")
    parser.add_argument("--checks", type=Path, metavar="COHORT", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; use --device cpu --quick")
    with tempfile.TemporaryDirectory() as name:
        if args.checks:
            args.json.write_text(json.dumps(checks(args.device, args.checks, Path(name)), indent=2))
            return 0
        results = run_parts(args, Path(name))
    print(f"{args.out}: {', '.join(results['failed']) or 'nothing'} failed", file=sys.stderr)
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
