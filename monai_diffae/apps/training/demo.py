"""The whole way in one command: a virtual cohort, training from scratch, embeddings, reconstructions, probes."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.evaluation.probe import probe
from monai_diffae.apps.session import read_cases, read_split_cohort
from monai_diffae.apps.synthesis.reconstruct import reconstruct
from monai_diffae.apps.training.train import train
from monai_diffae.bundle.folders import shipped
from monai_diffae.bundle.loading import build, load_bundle
from monai_diffae.data.atomic import write_atomic, write_json
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.engines.precision import resolve_precision
from monai_diffae.errors import CohortError, ConfigError

logger = logging.getLogger(__name__)

WHAT_IT_IS = "One real template (MNI152) with simulated variation of known strength: these are not patients."


@dataclass(frozen=True)
class DemoResult:
    """What :func:`demo` made.

    Attributes:
        probes: rows as from :func:`~monai_diffae.apps.evaluation.probe.probe`: z_sem, PCA of the pixels, an untrained
            encoder.
        reconstruction: means over the test cases, such as ``mse_x_T``.
        z_sem_usage: how much the denoising loss grows with another image's z_sem; None where it was not measured.
        seconds: of each stage; near 0 where it was done before.
        paths: what to look at, by name.
    """

    probes: list[dict[str, Any]]
    reconstruction: dict[str, float]
    z_sem_usage: float | None
    seconds: dict[str, float] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)


def demo(
    out: str | os.PathLike[str],
    *,
    overlay: str = "demo",
    num_patients: int = 3000,
    size: int = 48,
    num_reconstructions: int = 32,
    steps: int | None = None,
    device: str | None = None,
    workers: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> DemoResult:
    """Train on a virtual cohort and measure what the model learnt, on patients that it did not see.

    A second call in the same folder goes on where the first one stopped; stages that are complete are skipped.

    Args:
        out: the folder for everything.
        overlay: which of the shipped config overlays says how to train.
        num_patients: of the virtual cohort.
        size: pixels along a side of its images; the overlay says what the model's is.
        num_reconstructions: test cases that are reconstructed in both modes.
        steps: network evaluations for inversion, and as many for decoding; what the bundle's config says when None.
        device: where to compute; the GPU if there is one when None.
        workers: processes that read scans.
        overrides: config ids and values, such as ``{"max_epochs": 2}``.

    Raises:
        ConfigError: no such overlay, or ``out`` holds a demo of other settings.
        MachineError: the template's package (nilearn) is missing, or the disk is full.

    Example:
        >>> demo("out", overlay="no_such_overlay")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: overlay: there is no 'no_such_overlay'; choose one of: ...
    """
    folder = Path(out)
    overlay_file = shipped("overlays") / f"{overlay}.json"
    if not overlay_file.is_file():
        names = ", ".join(sorted(p.stem for p in shipped("overlays").glob("*.json")))
        raise ConfigError(f"overlay: there is no {overlay!r}; choose one of: {names}")
    seconds: dict[str, float] = {}
    model = folder / "model"
    with _timed("cohort", seconds):
        cohort = make_virtual_cohort(folder / "cohort", num_patients=num_patients, size=size)
    named = {"num_workers": workers or None, "device": device}
    values = {**{key: value for key, value in named.items() if value is not None}, **(overrides or {})}
    with _timed("train", seconds):
        _train(model, cohort, overlay_file, overrides or {}, values)
    with _timed("embed", seconds):
        embedded = embed(model, cohort, folder / "embeddings.parquet", device=device, workers=workers)
    with _timed("reconstruct", seconds):
        made = reconstruct(
            model, cohort, folder / "reconstructions", mode="both", steps=steps, limit=num_reconstructions,
            split="test", device=device, workers=workers,
        )  # fmt: skip
    with _timed("probe", seconds):
        probes = _probe(folder, model, cohort, embedded.path, workers)
    paths = {
        "mosaic": made.folder / "mosaic.png", "curves": model / "curves.png", "embeddings": embedded.path,
        "probes": folder / "probe.csv", "MLflow database": model / "mlflow.db",
    }  # fmt: skip
    found = {name: path for name, path in paths.items() if path.exists()}
    return DemoResult(probes, made.means, _last_usage(model / "curves.csv"), seconds, found)


def _train(model: Path, cohort: Path, overlay: Path, overrides: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Train into ``model`` with ``values``, unless that is complete.

    Raises:
        ConfigError: ``model`` is of another overlay or other overrides.
    """
    record = model / "demo.json"
    # the overlay trains for longer where the machine computes in bf16
    dtype = str(resolve_precision("auto", values.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")))
    settings = {"overlay": json.loads(overlay.read_text()), "overrides": dict(overrides), "computed_in": dtype}
    settings = json.loads(json.dumps(settings, default=str))
    before = json.loads(record.read_text()) if record.is_file() else {}
    has_weights = (model / "models" / "checkpoint.pt").is_file()
    if has_weights and before.get("settings") != settings:
        raise ConfigError(f"{model.parent.name}: holds a demo of other settings; name another --out")
    if has_weights and before["is_complete"]:
        logger.info("training is complete; nothing to do")
        return
    write_json(record, {"settings": settings, "is_complete": False})
    bundle = shipped("bundles") / "diffae_2d"
    train(bundle, cohort, model, overlays=[overlay], overrides=values)
    write_json(record, {"settings": settings, "is_complete": True})


def _probe(folder: Path, model: Path, cohort: Path, embeddings: Path, workers: int) -> list[dict[str, Any]]:
    """``probe.csv``: z_sem beside PCA of the pixels and an untrained encoder, all with as many dimensions.

    The two baselines keep the score honest: both carry much of what a linear probe can find.
    """
    from monai.bundle import ConfigParser

    path = folder / "probe.csv"
    if path.is_file() and path.stat().st_mtime >= embeddings.stat().st_mtime:
        return [{str(key): value for key, value in row.items()} for row in pd.read_csv(path).to_dict("records")]
    trained = load_bundle(model, "cpu")
    split, encoder_key = read_split_cohort(model, trained, cohort)
    cases = read_cases(split, trained, folder, encoder_key=encoder_key, workers=workers)
    by_id = {case.id: i for i, case in enumerate(cases.cases)}
    ids = read_embeddings(embeddings)["id"]
    images = torch.stack([cases.dataset[by_id[case_id]][encoder_key] for case_id in ids]).numpy()
    torch.manual_seed(0)
    untrained = build(ConfigParser(deepcopy(trained.config)), "network_def", nn.Module).eval()
    z_untrained = np.concatenate(
        [trained.inferer.encode(b, untrained).numpy() for b in torch.from_numpy(images).split(64)]
    )
    baselines = {"PCA of pixels": images, "untrained encoder": z_untrained}
    rows = probe(embeddings, evaluation="split", probes=["linear"], baselines=baselines).rows
    write_atomic(path, lambda temporary: pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n"))
    return rows


def _last_usage(curves: Path) -> float | None:
    """The last z_sem usage that a training's ``curves.csv`` has."""
    if not curves.is_file():
        return None
    table = pd.read_csv(curves)
    column = next((name for name in table.columns if "z_sem_usage" in name), None)
    values = table[column].dropna() if column else np.array([])
    return float(np.asarray(values)[-1]) if len(values) else None


def show(result: DemoResult) -> None:
    """Print a demo's result: tables, what to look at, and how long it took."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    console.print(WHAT_IT_IS, highlight=False)
    scores: dict[str, dict[str, Any]] = {}
    for row in result.probes:
        scores.setdefault(row["target"], {})[row["features"]] = row
    if not scores:
        raise CohortError("demo: there is nothing to probe; make the cohort larger")
    names = list(next(iter(scores.values())))
    table = Table(title="Held-out R2 of a linear probe, with its 95% interval")
    table.add_column("factor")
    for name in names:
        table.add_column(f"{name} ({next(iter(scores.values()))[name]['dims']} dims)", justify="right")
    for target, row in scores.items():
        table.add_row(target, *(f"{row[n]['score']:.3f} ({row[n]['low']:.3f} to {row[n]['high']:.3f})" for n in names))
    console.print(table)
    numbers = Table(title="Reconstruction of held-out cases")
    for heading in ("from", "MSE", "PSNR (dB)", "SSIM"):
        numbers.add_column(heading)
    for mode, label in (("z_sem", "z_sem only"), ("x_T", "z_sem and inverted x_T")):
        mse, psnr, ssim = (result.reconstruction[f"{metric}_{mode}"] for metric in ("mse", "psnr", "ssim"))
        numbers.add_row(label, f"{mse:.2e}", f"{psnr:.1f}", f"{ssim:.4f}")
    console.print(numbers)
    if result.z_sem_usage is not None:
        console.print(f"z_sem usage: {result.z_sem_usage:.3f}", highlight=False)
    for name, path in result.paths.items():
        console.print(f"{name:>16}: {path}", highlight=False)
    console.print("   ".join(f"{stage} {s:.0f} s" for stage, s in result.seconds.items()), highlight=False)


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - start
    logger.info("%s: %.1f s", stage, seconds[stage])
