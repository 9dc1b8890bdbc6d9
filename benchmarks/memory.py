"""Predicted beside measured memory of training steps, each in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/memory.py [--only 3 --device cuda]

Measured, over three steps of ``DiffusionTrainer`` with AdamW and an average of the weights: on a CPU the largest
resident set (VmHWM), less the resident set after the imports (Linux only); on a GPU the most memory that torch
reserved.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.engines import AutoencoderPrepareBatch, DiffusionTrainer
from monai_diffae.engines.memory import GIB, training_memory
from monai_diffae.engines.precision import resolve_precision
from monai_diffae.handlers import EMA
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.networks import DiffusionAutoencoder, anisotropic_strides, build_autoencoder

SIZES: list[tuple[int, tuple[int, ...]]] = [  # batch, image: the bundles' defaults, and larger volumes
    (16, (64, 64)),
    (4, (32, 40, 32)),
    (8, (32, 40, 32)),
    (2, (48, 48, 48)),
    (1, (64, 64, 64)),
    (1, (96, 96, 96)),
]
CONFIGURATIONS = [
    {"batch_size": batch_size, "image_size": image_size, "use_checkpoint": use_checkpoint, "precision": precision}
    for batch_size, image_size in SIZES
    for use_checkpoint in (False, True)
    for precision in ("fp32", "bf16")
]


def network(image_size: Sequence[int], use_checkpoint: bool, base_channels: int = 16) -> DiffusionAutoencoder:
    """The shipped bundles' network, or a wider or narrower one."""
    return build_autoencoder(
        len(image_size), base_channels=base_channels, channel_mult=(1, 2, 4, 8), num_res_blocks=1, z_channels=128,
        z_grid=4 if len(image_size) == 2 else 2, time_embed_channels=128, use_checkpoint=use_checkpoint,
        strides=anisotropic_strides(image_size, [1.0] * len(image_size), 4),
    )  # fmt: skip


def predict(
    batch_size: int, image_size: Sequence[int], use_checkpoint: bool = False, precision: Any = "auto",
    device: str = "cpu", base_channels: int = 16,
) -> float:  # fmt: skip
    """Predicted GiB."""
    with torch.device("meta"):
        model = network(image_size, use_checkpoint, base_channels)
    return training_memory(model, (batch_size, 1, *image_size), device, resolve_precision(precision, device)).gib


def measure(
    batch_size: int, image_size: Sequence[int], use_checkpoint: bool = False, precision: Any = "auto",
    device: str = "cpu", base_channels: int = 16,
) -> float:  # fmt: skip
    """GiB that three steps took in this process, which must be a fresh one."""
    is_cpu = torch.device(device).type == "cpu"
    before = resident_before() if is_cpu else 0
    schedule = DiffusionSchedule()
    model = network(image_size, use_checkpoint, base_channels).to(device)
    batch = {"image": torch.rand(batch_size, 1, *image_size) * 2 - 1, "id": ["a"] * batch_size}
    trainer = DiffusionTrainer(
        schedule=schedule, precision=precision, device=torch.device(device), max_epochs=1,
        train_data_loader=[batch] * 3, network=model, inferer=DiffusionAutoencoderInferer(schedule),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True),
        loss_function=torch.nn.MSELoss(reduction="none"), prepare_batch=AutoencoderPrepareBatch(schedule),
        train_handlers=[EMA(model, 0.999)],
    )  # fmt: skip
    trainer.run()
    most = resident("VmHWM") if is_cpu else int(torch.cuda.max_memory_reserved(device))
    return (most - before) / GIB


def measure_elsewhere(configuration: dict[str, Any]) -> float:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps(configuration)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(printed.splitlines()[-1])


def resident_before() -> int:
    """Bytes of this process that are resident now; from now on, VmHWM is the most after this call."""
    Path("/proc/self/clear_refs").write_text("5")  # imports may have taken more at a time than they keep
    return resident("VmRSS")


def resident(key: str) -> int:
    """A line of this process's status in bytes: VmRSS now, VmHWM at most."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--only", type=int, choices=(2, 3), help="images of so many dimensions only")
    parser.add_argument("--first", type=int, help="only so many of the rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    if args.measure:
        print(measure(**args.measure))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print("batch  image          checkpointing  precision  predicted GiB  measured GiB  predicted / measured")
    rows = []
    chosen = [row for row in CONFIGURATIONS if args.only in (None, len(row["image_size"]))]
    for configuration in [{**row, "device": args.device} for row in chosen[: args.first]]:
        size = configuration["image_size"]
        predicted, measured = predict(**configuration), measure_elsewhere(configuration)
        print(
            f"{configuration['batch_size']:5d}  {' x '.join(map(str, size)):13s}  "
            f"{'yes' if configuration['use_checkpoint'] else 'no':13s}  {configuration['precision']:9s}  "
            f"{predicted:13.3f}  {measured:12.3f}  {predicted / measured:20.2f}",
            flush=True,
        )
        rows.append({**configuration, "predicted_gib": predicted, "measured_gib": measured})
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
