"""Goal R23: z_sem of a scan is the same to the bit, whatever the batch, the workers and the order of the cohort."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae import embed

pytestmark = pytest.mark.goal(id="R23")

COUNT = 70


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for k in range(COUNT):
        noise = np.random.default_rng(k).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"p{k:03d}.png")
    return folder


def _codes(bundle, scans, tmp_path, order, name="cohort.csv", **options):
    table = pd.DataFrame({"image": [f"p{k:03d}.png" for k in order], "split": "test"})
    table.to_csv(scans / name, index=False)
    made = embed(bundle, scans / name, tmp_path / "z.parquet", device="cpu", overwrite=True, **options)
    read = pd.read_parquet(made.path).set_index("id").sort_index()
    return read[[column for column in read if column.startswith("z_")]]


def test_batch_workers_and_order_do_not_change_a_bit(labelled, scans, tmp_path, record_property):
    plain = _codes(labelled.bundle, scans, tmp_path, range(COUNT), workers=0)
    shuffled = np.random.default_rng(0).permutation(COUNT)
    settings = [*itertools.product((1, 7, 64), (0,)), (64, 1), (7, 2)]
    for (batch_size, workers), order in itertools.product(settings, (range(COUNT), shuffled)):
        other = _codes(labelled.bundle, scans, tmp_path, order, batch_size=batch_size, workers=workers)
        pd.testing.assert_frame_equal(plain, other, check_exact=True)
    alone = _codes(labelled.bundle, scans, tmp_path, [41], workers=0)
    pd.testing.assert_frame_equal(plain.loc[["p041"]], alone, check_exact=True)
    record_property("figure", f"{2 * len(settings) + 1} of {2 * len(settings) + 1} runs give the same bits")
