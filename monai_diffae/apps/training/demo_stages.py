"""The stages of the demo that only it has: a training that is not repeated, and probes beside two baselines."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.apps.evaluation.probe import probe
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Reading, Run
from monai_diffae.apps.training.train import train
from monai_diffae.bundle import layout
from monai_diffae.bundle.layout import shipped
from monai_diffae.bundle.loading import untrained_network
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.data.atomic import write_atomic, write_json
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.engines.precision import resolve_precision
from monai_diffae.errors import ConfigError, quoted

logger = logging.getLogger(__name__)

_BATCH_SIZE = 64


def find_overlay(name: str) -> Path:
    """The file of a shipped configuration overlay."""
    file = shipped("overlays") / f"{name}.json"
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in shipped("overlays").glob("*.json")))
        raise ConfigError(f"overlay: there is no {quoted(name)}; choose one of: {names}")
    return file


def train_once(
    model: Path, cohort: Path, overlay: Path, overrides: Mapping[str, Any], device: str | None, workers: int | None
) -> None:
    """Train the shipped 2D bundle into a folder, unless that is complete."""
    record = model / "demo.json"
    # the overlay trains for longer if the machine computes in bf16
    where = str(overrides.get("device") or device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = {
        "overlay": json.loads(overlay.read_text()), "overrides": dict(overrides),
        "computed_in": str(resolve_precision("auto", where)),
    }  # fmt: skip
    settings = json.loads(json.dumps(settings, default=str))
    before = json.loads(record.read_text()) if record.is_file() else {}
    has_weights = (model / layout.MODELS / layout.CHECKPOINT).is_file()
    if has_weights and before.get("settings") != settings:
        raise ConfigError(f"{model.parent.name}: holds a demo with other settings; choose another out")
    if has_weights and before["is_complete"]:
        logger.info("training is complete; nothing to do")
        return
    write_json(record, {"settings": settings, "is_complete": False})
    bundle = shipped("bundles") / "diffae_2d"
    train(bundle, cohort, model, overlays=[overlay], device=device, workers=workers, overrides=overrides)
    write_json(record, {"settings": settings, "is_complete": True})


def probe_once(
    model: Path, cohort: Path, embeddings: Path, table: Path, workers: int | None, others: Mapping[str, Path]
) -> list[dict[str, Any]]:
    """Probe z_sem, PCA of the pixels and an untrained encoder, all with the same number of dimensions, and others.

    The two baselines show what a linear probe finds without any training. One row per target and kind of features. The
    table is read instead if it is newer than the embeddings.
    """
    if table.is_file() and table.stat().st_mtime >= embeddings.stat().st_mtime:
        scores = pd.read_csv(table).astype(object)
        scores = scores.where(scores.notna(), None)  # as a probe gives them, and valid in JSON
        return [{str(key): value for key, value in row.items()} for row in scores.to_dict("records")]
    session = Session.open(model, cohort, reading=Reading(workers=workers), run=Run(device="cpu"))
    read = session.read(session.cohort.cases, table.parent)
    position = {case.id: i for i, case in enumerate(read.cases)}
    ids = read_embeddings(embeddings)["id"]
    images = torch.stack([read.dataset[position[case_id]][session.encoder_key] for case_id in ids])
    baselines = {
        "PCA of pixels": images.numpy(), "untrained encoder": _untrained_z_sem(session.trained, images),
        **{name: z_matrix(read_embeddings(path).set_index("id").loc[ids]) for name, path in others.items()},
    }  # fmt: skip
    rows = probe(embeddings, evaluation="split", probes=["linear"], baselines=baselines).rows
    write_atomic(table, lambda temporary: pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n"))
    return rows


def _untrained_z_sem(trained: TrainedBundle, images: Tensor) -> NDArray[np.float32]:
    """z_sem (N, D) of images (N, C, *S) from a network like the trained one, with random weights."""
    untrained = untrained_network(trained.config)
    return np.concatenate([trained.inferer.encode(batch, untrained).numpy() for batch in images.split(_BATCH_SIZE)])


def last_usage(curves: Path) -> float | None:
    """The last ``z_sem_usage`` in a training's ``curves.csv``; None if it was not measured."""
    if not curves.is_file():
        return None
    table = pd.read_csv(curves)
    column = next((name for name in table.columns if "z_sem_usage" in name), None)
    values = table[column].dropna() if column else np.array([])
    return float(np.asarray(values)[-1]) if len(values) else None
