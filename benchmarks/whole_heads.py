"""Whole heads in latent mode: both stages are trained on virtual heads, then the script measures what z_sem holds.

    OMP_NUM_THREADS=1 python benchmarks/whole_heads.py OUT [--heads 600] [--overrides batch_size=4 ...] [--scan FILE]

1. ``OUT/heads``: virtual heads with known factors, 112 voxels of 2 mm along each axis.
2. ``OUT/first_stage_patches``, ``OUT/first_stage_large``, ``OUT/first_stage``: the first stage, trained on patches of
   32 voxels of the first heads, then on patches of two thirds of a head, then on whole heads. Its GroupNorm takes means
   over all voxels, and patches have less background than heads, so that heads were too bright after patches alone.
3. ``OUT/model``: the diffusion autoencoder, trained on latents that are made once (``cache_latents``).
4. ``embed``; then ridge regressions, trained on the training heads, predict each factor of the test heads from z_sem,
   and from as many principal components of the voxels (at half of the resolution).
5. ``evaluate``, of some test heads: does the decoder use z_sem?
6. ``reconstruct``: some test heads from z_sem alone and with their x_T, beside the mean of the training heads.

It prints the seconds and the largest memory of each step, and writes ``OUT/whole_heads.json``. What is in ``OUT``
already is not made again, and a training that was stopped resumes. With ``--scan``, another scan goes through
``embed`` and ``reconstruct``, for their time and memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measured_process import run_python
from numpy.typing import NDArray
from torch.nn.functional import avg_pool3d

from monai_diffae.apps.evaluation.probe import probe
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Reading, Run
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.samples import FACTORS, make_virtual_cohort
from monai_diffae.data.streamed import read_stream

# latents 8 times smaller along each axis: 12 x 16 x 16 of a whole head, so that many can be seen in an hour
FIRST_STAGE = {
    "network_def#autoencoder#channels": [8, 16, 32, 64], "network_def#autoencoder#attention_levels": [False] * 4,
    "network_def#autoencoder#latent_channels": 8, "learning_rate": 2e-3, "ema_decay": 0.99,
}  # fmt: skip
LARGE = {"batch_size": 1, "warmup_steps": 10, "learning_rate": 1e-3}
MODEL = {
    "cache_latents": True, "augmentation": None, "batch_size": 8, "val_batch_size": 8, "calibration_cases": 0,
    "channel_mult": [1, 2, 4], "network_def#encoder#channel_mult": [1, 2, 4],
    "network_def#encoder#base_channels": 32, "diffusion#timestep_shift": 2, "z_grid": [3, 4, 4], "picture_steps": 10,
}  # fmt: skip
COMMON = {"mlflow": False, "num_pictures": 2}


def command(found: dict[str, Any], name: str, *arguments: object) -> None:
    """Run a command of the program; note its seconds (of a resumed training: since then) and its largest memory."""
    used = run_python(["-m", "monai_diffae", *map(str, arguments)])
    figures = {
        "seconds": round(used.seconds), "processor_seconds": round(used.processor_seconds),
        "peak_gib": round(used.peak_gib, 2),
    }  # fmt: skip
    found[name] = figures
    print(name, figures, flush=True)


def with_model(found: dict[str, Any], name: str, model: Path, cohort: Path, result: Path, *arguments: object) -> None:
    """Run a command with the trained model, unless its result is newer than the model."""
    weights = model / "models" / "model.safetensors"
    if not result.exists() or result.stat().st_mtime < weights.stat().st_mtime:
        command(found, name, name.split()[0], model, cohort, result.parent, "--overwrite", *arguments)


def given(values: dict[str, Any]) -> list[str]:
    """Values as arguments of ``--overrides``."""
    return ["--overrides", *(f"{key}={json.dumps(value)}" for key, value in values.items())]


def train(
    found: dict[str, Any], name: str, bundle: Path, kind: str, cohort: Path, values: dict[str, Any], *more: object
) -> None:
    """Make and train a bundle, or resume its training."""
    if not bundle.exists() and "--start-from" not in more:
        init_bundle(bundle, kind)
    if found.get(name, {}).get("epochs") != values["max_epochs"]:
        command(found, name, "train", bundle, cohort, *more, *given(values))
        found[name]["epochs"] = values["max_epochs"]


def pooled_heads(session: Session, ids: Iterable[str], out: Path) -> NDArray[np.float32]:
    """The heads (N, C, *S) at half of their resolution, in the order of the table; ``out`` keeps them."""
    file = out / "pooled.npy"
    if not file.exists():
        cases = {case.id: case for case in session.cohort.cases}
        stream = read_stream([cases[name].item() for name in ids], session.trained.preprocessing, ("image",))
        pooled = [avg_pool3d(torch.from_numpy(arrays["image"]), 2).numpy() for arrays in stream]  # type: ignore[index]
        write_atomic(file, lambda path: np.save(path, np.stack(pooled)))
    heads: NDArray[np.float32] = np.load(file)
    return heads


def probes(bundle: Path, cohort: Path, out: Path) -> tuple[pd.DataFrame, dict[str, float]]:
    """R2 of the factors from z_sem and from PCA; and the error of the mean head, which knows nothing of a patient."""
    table = read_embeddings(out / "embedded" / "embeddings.parquet")
    session = Session.open(bundle, cohort, reading=Reading(), run=Run(device="cpu"))
    heads = pooled_heads(session, table["id"], out)
    is_train = (table["split"] == "train").to_numpy()
    errors = np.square(heads[~is_train] - heads[is_train].mean(axis=0))
    table["split"] = table["split"].replace("val", "test")  # the factors of neither were used
    held_out = out / "held_out.parquet"
    table.to_parquet(held_out)
    targets = [factor.name for factor in FACTORS]
    result = probe(held_out, targets=targets, evaluation="split", probes=["linear"], baselines={"PCA of voxels": heads})
    return pd.DataFrame(result.rows), {"mse_mean_head_at_4_mm": float(errors.mean())}


def main() -> None:
    """Make what is missing, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--heads", type=int, default=600)
    parser.add_argument("--size", type=int, default=112, help="voxels of a head along each axis; 224 mm in all")
    parser.add_argument("--image-size", type=int, nargs=3, default=[96, 128, 128])
    parser.add_argument("--first-stage-heads", type=int, default=48)
    parser.add_argument("--patch-epochs", type=int, default=40, help="of the first stage on patches of 32 voxels")
    parser.add_argument("--large-epochs", type=int, default=3, help="of the first stage on larger patches")
    parser.add_argument("--whole-epochs", type=int, default=1, help="of the first stage on whole heads")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--validations", type=int, default=4, help="validations during each training")
    parser.add_argument("--diagnosed", type=int, default=40, help="test heads for evaluate")
    parser.add_argument("--reconstructions", type=int, default=8)
    parser.add_argument("--first-stage-overrides", nargs="*", default=[], help="KEY=JSON, for the first stage")
    parser.add_argument("--overrides", nargs="*", default=[], help="KEY=JSON, for the model")
    parser.add_argument("--scan", type=Path)
    options = parser.parse_args()
    out, record = options.out, options.out / "whole_heads.json"
    found: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    grid = {"image_size": options.image_size, "spacing_mm": [224 / options.size] * 3, **COMMON}

    def settings(values: dict[str, Any], epochs: int, overrides: list[str]) -> dict[str, Any]:
        chosen = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in overrides)}
        interval = max(1, epochs // options.validations)
        return {**grid, **values, "max_epochs": epochs, "val_interval": interval, "probe_interval": interval, **chosen}

    def save() -> None:
        write_atomic(record, lambda path: path.write_text(json.dumps(found, indent=2)))

    start = time.perf_counter()
    cohort = make_virtual_cohort(out / "heads", num_patients=options.heads, size=options.size, spatial_dims=3)
    print(f"heads: {time.perf_counter() - start:.0f} s", flush=True)
    first_heads = cohort.with_name("first_stage.csv")
    columns = ["id", "patient", "image", "split"]
    pd.read_csv(cohort)[columns].head(options.first_stage_heads).to_csv(first_heads, index=False)
    first_stage, large, patches = (out / f"first_stage{end}" for end in ("", "_large", "_patches"))
    model = out / "model"
    sides = [side * 2 // 3 // 8 * 8 for side in options.image_size]
    for bundle, own, epochs, more in (
        (patches, {}, options.patch_epochs, []),
        (large, {"patch_size": sides} | LARGE, options.large_epochs, ["--start-from", patches]),
        (first_stage, {"patch_size": options.image_size} | LARGE, options.whole_epochs, ["--start-from", large]),
    ):
        values = settings(FIRST_STAGE | own, epochs, options.first_stage_overrides)
        del values["probe_interval"]
        train(found, f"train {bundle.name}", bundle, "autoencoder_kl_3d", first_heads, values, *more)
        save()
    overlay = model / "configs" / "overlays" / "latent_space.json"
    values = {"first_stage_bundle": str(first_stage)} | settings(MODEL, options.epochs, options.overrides)
    train(found, "train model", model, "diffae_3d", cohort, values, "--overlays", overlay)
    save()
    test_cases = ["--split", "test", "--limit"]
    with_model(found, "embed", model, cohort, out / "embedded" / "embeddings.parquet")
    if not (out / "evaluated" / "record.json").exists():
        of_model = ["--bundle", model, "--cohort", cohort, "--limit", options.diagnosed]
        few = ["--steps", 20, "--draws", 1, "--num-images", 0, "--num-codes", 0]
        command(found, "evaluate", "evaluate", out / "evaluated", *of_model, *few)
    chosen = ["--mode", "both", "--batch-size", 2, *test_cases, options.reconstructions]
    with_model(found, "reconstruct", model, cohort, out / "reconstructed" / "record.json", *chosen)
    if options.scan is not None:
        for name, file in (("embed", "embeddings.parquet"), ("reconstruct", "record.json")):
            with_model(found, f"{name} of the scan", model, options.scan, out / f"scan_{name}" / file)
    save()
    evaluation = json.loads((out / "evaluated" / "evaluation.json").read_text())
    rows, errors = probes(model, cohort, out)
    rows.to_csv(out / "probes.csv", index=False)
    found |= errors | {
        "z_sem_usage": next(row["value"] for row in evaluation["rows"] if row["metric"] == "z_sem_usage"),
        "reconstructions": json.loads((out / "reconstructed" / "record.json").read_text())["figures"]["means"],
        "peak_gib_of_the_probes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2),
    }
    save()
    print(rows[["target", "features", "dims", "score", "low", "high", "num_test"]].round(3).to_string(index=False))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
