"""How well z_sem of a trained 3D bundle predicts measured volumes, and how good its reconstructions are.

    python benchmarks/volumes.py BUNDLE COHORT.csv --target hippocampus_mm3 [--target ...] --out results/

On the cases that were not trained on (validation and test):

- a ridge probe of z_sem for each target: R2 with a 95 % interval over patients; beside it the same probe of PCA of the
  preprocessed voxels with as many dimensions, of an untrained encoder, of intensity statistics that know no size, and
  of the sizes of the scan's box alone.
- reconstructions: MSE, PSNR and SSIM with the inverted x_T and from z_sem alone, and what x_T looks like.

It writes probes.csv and summary.json, and prints both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from baselines import images_of, untrained_codes
from numpy.typing import NDArray
from scipy import stats

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.evaluation.probe import probe
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Reading, Run
from monai_diffae.apps.synthesis.reconstruct import reconstruct
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.scans import read_scan


def scale_free_statistics(array: NDArray[np.float32]) -> list[float]:
    """Moments and deciles of intensities between the 0.5th and 99.5th percentile: no size, no unit."""
    low, high = np.percentile(array, [0.5, 99.5])
    values = np.clip((array.ravel() - low) / (high - low), 0, 1)
    moments = [values.mean(), values.std(), stats.skew(values), stats.kurtosis(values)]
    return [float(v) for v in (*moments, *np.percentile(values, np.arange(10, 100, 10)))]


def features_of(
    bundle: Path, cohort: Path, columns: dict[str, str], out: Path, ids: list[str]
) -> tuple[torch.Tensor, dict[str, NDArray[Any]]]:
    """The preprocessed images and the baselines' features, one row per case of ``ids``."""
    session = Session.open(bundle, cohort, reading=Reading(columns=columns), run=Run(device="cpu"))
    images = images_of(session, ids, out)
    files = {case.id: str(case.images["image"]) for case in session.cohort.cases}
    scans = [read_scan(files[name]) for name in ids]
    sizes = [[n * mm for n, mm in zip(s.array.shape[1:], s.spacing_mm, strict=True)] for s in scans]
    return images, {
        "untrained encoder": untrained_codes(session.trained, images),
        "intensity statistics": np.array([scale_free_statistics(scan.array) for scan in scans]),
        "sizes of the box": np.array([[*size, np.prod(size)] for size in sizes]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--target", action="append", required=True)
    parser.add_argument("--column", action="append", default=[], help="word=name")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    columns = dict(pair.split("=", 1) for pair in args.column)
    args.out.mkdir(parents=True, exist_ok=True)
    embedded = embed(args.bundle, args.cohort, args.out / "embedded", columns=columns, device="cpu").path
    table = read_embeddings(embedded)
    table["split"] = table["split"].replace("val", "test")  # neither was trained on
    evaluated = args.out / "evaluated.parquet"
    table.to_parquet(evaluated)
    images, baselines = features_of(args.bundle, args.cohort, columns, args.out, table["id"].tolist())
    baselines = {"PCA of pixels": images.numpy(), **baselines}
    options = {"evaluation": "split", "probes": ["linear"]}
    rows = pd.DataFrame(probe(evaluated, targets=args.target, baselines=baselines, **options).rows)
    rows.to_csv(args.out / "probes.csv", index=False)
    print(rows[["target", "features", "dims", "score", "low", "high", "num_test"]].round(3).to_string(index=False))
    summary = {}
    for split in ("val", "test"):
        made = reconstruct(
            args.bundle, args.cohort, args.out / f"reconstructed_{split}", mode="both", split=split, columns=columns,
            device="cpu", batch_size=4,
        )  # fmt: skip
        summary[split] = {"num_cases": made.num_cases, **made.means}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
