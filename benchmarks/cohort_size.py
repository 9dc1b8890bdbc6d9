"""How many cases does z_sem of volumes need to predict more than principal components? Virtual heads, known factors.

    OMP_NUM_THREADS=1 python benchmarks/cohort_size.py OUT [--cases 100 400 1600] [--volumes 12000]

For each number of cases, a Diff-AE is trained without labels, always on as many volumes in all (so that the smaller
cohorts are seen in more epochs). Then ridge regressions, trained on the same cases, predict each factor of the same
400 other heads from z_sem, and from as many principal components of the voxels. ``OUT/cohort_size.csv`` has R2 with
95 % intervals, and the paired difference of z_sem and the principal components; ``OUT/<cases>/probes/few_labels.csv``
the same from fewer labelled heads. A run that was stopped resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.evaluation.probe import probe
from monai_diffae.apps.settings import Comparison, Training
from monai_diffae.apps.training.train import train
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.data.samples import FACTORS, make_virtual_cohort

BATCH, VALIDATION, TEST = 16, 32, 400


def table_with(cohort: Path, cases: int) -> Path:
    """The table of the first ``cases`` heads, and of the heads for validation and test, which are always the same."""
    table = pd.read_csv(cohort)
    splits = ["test"] * TEST + ["val"] * VALIDATION + ["train"] * cases
    chosen = table.iloc[: len(splits)].assign(split=splits)
    path = cohort.with_name(f"{cases}_cases.csv")
    chosen.to_csv(path, index=False)
    return path


def rows_for(out: Path, cohort: Path, cases: int, arguments: argparse.Namespace) -> pd.DataFrame:
    """Train on ``cases`` heads, and probe the codes."""
    folder, table = out / str(cases), table_with(cohort, cases)
    bundle, codes = folder / "bundle", folder / "codes"
    if not bundle.is_dir():
        init_bundle(bundle, "diffae_3d")
    size = arguments.size
    values = {
        "image_size": [size] * 3, "spacing_mm": [224 / size] * 3, "batch_size": BATCH, "val_interval": 10**6,
        "max_epochs": round(arguments.volumes / (cases // BATCH * BATCH)), "mlflow": False, "num_pictures": 0,
        "calibration_cases": 0,
        "channel_mult": [1, 2, 4], "network_def#encoder#channel_mult": [1, 2, 4],
        "network_def#encoder#base_channels": 32, "diffusion#timestep_shift": 2, "z_grid": [size // 4] * 3,
    }  # fmt: skip
    overlay = bundle / "configs" / "overlays" / "embed_volumes.json"
    train(bundle, table, training=Training(overlays=(overlay,), overrides=values))
    embed(bundle, table, codes)
    targets = [factor.name for factor in FACTORS]
    comparison = Comparison(pixel_baselines=["pca"], bundle=bundle, cohort=table)
    table_of_codes = codes / "embeddings.parquet"
    result = probe(table_of_codes, folder / "probes", targets=targets, probes=["linear"], comparison=comparison)
    return pd.DataFrame(result.rows).assign(cases=cases)


def main() -> None:
    """Train, probe and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, nargs="+", default=[100, 400, 1600])
    parser.add_argument("--volumes", type=int, default=12_000, help="volumes seen in each training")
    parser.add_argument("--size", type=int, default=20, help="voxels along each axis")
    arguments = parser.parse_args()
    number = TEST + VALIDATION + max(arguments.cases)
    cohort = make_virtual_cohort(
        arguments.out / "heads",
        num_patients=number,
        size=arguments.size,
        spatial_dims=3,
        val_fraction=0,
        test_fraction=0,
    )
    found = []
    for cases in arguments.cases:
        found.append(rows_for(arguments.out, cohort, cases, arguments))
        table = pd.concat(found)
        table.to_csv(arguments.out / "cohort_size.csv", index=False)
    columns = ["cases", "target", "features", "score", "low", "high", "difference", "difference_low", "difference_high"]
    print(table[columns].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
