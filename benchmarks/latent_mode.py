"""Time and memory of latent mode: both stages are trained briefly on virtual heads, then a scan goes through them.

OMP_NUM_THREADS=1 python benchmarks/latent_mode.py scan.nii.gz --out latent_mode

What is in ``--out`` already is not trained again. The models know little after so short a training; what counts here is
the seconds and the peak of the resident memory of each command.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from monai_diffae.bundle.folders import init_bundle
from monai_diffae.data.samples import make_virtual_cohort

PATCHES_PER_HEAD, HEADS_SEEN = 130, 14  # epochs


def measured(name: str, *arguments: object) -> None:
    """Run a command and print its seconds and peak memory."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "monai_diffae.cli", *map(str, arguments)])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} failed")
    wall, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
    print(f"{name}: {wall:.0f} s, {cpu:.0f} s of a processor, {used.ru_maxrss / 1024**2:.2f} GiB", flush=True)


def main() -> None:
    """Train where it is not done, then embed and reconstruct."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--out", type=Path, default=Path("latent_mode"))
    options = parser.parse_args()
    first_stage, model = options.out / "first_stage", options.out / "model"
    cohort = make_virtual_cohort(options.out / "heads", num_patients=12, size=112, spatial_dims=3)
    short = ["--set", "mlflow=false", "--set", "num_pictures=1"]
    if not first_stage.exists():
        init_bundle(first_stage, "autoencoder_kl_3d")
        epochs = ["--set", f"max_epochs={PATCHES_PER_HEAD}", "--set", f"val_interval={PATCHES_PER_HEAD}"]
        measured("train the first stage", "train", "--bundle", first_stage, "--cohort", cohort, *epochs, *short)
    if not model.exists():
        init_bundle(model, "diffae_3d")
        overlay = model / "configs" / "overlays" / "latent_space.json"
        of_latents = ["--overlay", overlay, "--set", f"first_stage_bundle={first_stage}", "--set", "picture_steps=5"]
        epochs = ["--set", f"max_epochs={HEADS_SEEN}", "--set", f"val_interval={HEADS_SEEN}"]
        measured("train the model", "train", "--bundle", model, "--cohort", cohort, *of_latents, *epochs, *short)
    for command in ("embed", "reconstruct"):
        out = options.out / command
        measured(command, command, "--bundle", model, "--cohort", options.scan, "--out", out, "--overwrite")


if __name__ == "__main__":
    main()
