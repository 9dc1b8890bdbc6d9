"""Goals R2, R13, R14 and R23: N cases give N results in the output folder, the same ones however they are computed."""

import csv
import itertools
import os
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fuzzing import only_own_errors
from PIL import Image

from monai_diffae import embed, reconstruct
from monai_diffae.data.cohorts import read_cohort

NAMES = [
    "../../etc/passwd", "..", ".", "...", "../x", "a/../b", "....//x", "..\\..\\x", "/etc/passwd", "//server/share",
    "C:\\x", "C:x", "\\\\server\\share", "~", "~root", "-rf", "--out=/tmp/x", "$(touch x)", "`x`", "a;b", "a|b", "a&b",
    "a*b", "a?b", "a<b>c", 'a"b', "a'b", "a:b", "a b", " a", "a ", "a.", "a..", ".hidden", "CON", "nul", "NUL.txt",
    "com1", "LPT1", "aux.nii.gz", "x" * 100, "x" * 300, "é" * 200, "名前", "ａ／ｂ", "a\u202eb", "a\u200bb",
    "e\u0301", "\u00e9",
    "K", "\u212a", "A", "a", "ß", "SS", "%2e%2e%2f", "%00", "a#series=1", "case_z007", "0", "-1", "1e9", "NaN", "None",
    "a\0b", "a\nb", "a\rb", "\x1b[31m", "\x7f", "\ud800",
]  # fmt: skip


def _picture(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)).save(path)


def _cohort(folder, ids):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(len(ids)):
        _picture(folder / f"p{k}.png", k)
    with open(folder / "cohort.csv", "w", newline="", encoding="utf-8", errors="surrogatepass") as stream:
        rows = csv.writer(stream, quoting=csv.QUOTE_ALL)
        rows.writerows([("id", "image", "split"), *((id, f"p{k}.png", "test") for k, id in enumerate(ids))])
    return folder / "cohort.csv"


def _tree(folder):
    return {os.path.relpath(os.path.join(root, name), folder) for root, _, names in os.walk(folder) for name in names}


@pytest.mark.goal(id="R14")
def test_hostile_ids_write_only_into_the_output_folder(tiny_bundle, tmp_path, record_property):
    accepted, refused = [], 0
    for name in NAMES:
        cohort = _cohort(tmp_path / "one", [name, "other"])
        if not only_own_errors(partial(read_cohort, cohort)):
            refused += 1
            continue
        cases = read_cohort(cohort)
        safe = cases[0].file_name
        assert Path(os.path.realpath(tmp_path / safe)).parent == tmp_path.resolve(), name
        accepted.append(cases[0].id)
    accepted = list(dict.fromkeys(accepted))
    cohort = _cohort(tmp_path / "scans", accepted)
    before = _tree(tmp_path)
    out = tmp_path / "deep" / "inside" / "out"
    made = reconstruct(tiny_bundle.directory, cohort, out, split="test", steps=1, device="cpu", workers=0)
    table = embed(tiny_bundle.directory, cohort, out / "z.parquet", device="cpu", workers=0)
    new = _tree(tmp_path) - before
    assert {path for path in new if not path.startswith("deep/inside/out/")} == set()
    images = [path for path in new if path.startswith("deep/inside/out/x_T/")]
    assert len(images) == len({path.casefold() for path in images}) == len(accepted) == made.num_cases
    assert len(pd.read_parquet(table.path)) == len(accepted)
    record_property(
        "figure",
        f"{len(NAMES)} names: {refused} refused, {len(accepted)} outputs for {len(accepted)} ids, none outside",
    )
    assert len(NAMES) >= 60
    assert len(accepted) >= 50


def _codes(bundle, scans, out, order, **options):
    pd.DataFrame({"image": [f"p{k:03d}.png" for k in order], "split": "test"}).to_csv(scans / "c.csv", index=False)
    made = embed(bundle, scans / "c.csv", out, device="cpu", overwrite=True, **options)
    read = pd.read_parquet(made.path).set_index("id").sort_index()
    return read[[column for column in read if column.startswith("z_")]]


@pytest.mark.goal(id="R23")
def test_batch_workers_and_order_do_not_change_a_bit_of_z_sem(labelled, tmp_path, record_property):
    scans, out, count = tmp_path / "scans", tmp_path / "z.parquet", 20
    scans.mkdir()
    for k in range(count):
        _picture(scans / f"p{k:03d}.png", k)
    plain = _codes(labelled.bundle, scans, out, range(count), workers=0)
    assert len(plain) == count
    shuffled = np.random.default_rng(0).permutation(count)
    for batch_size, workers in ((1, 0), (7, 2), (64, 0)):
        other = _codes(labelled.bundle, scans, out, shuffled, batch_size=batch_size, workers=workers)
        pd.testing.assert_frame_equal(plain, other, check_exact=True)
    alone = _codes(labelled.bundle, scans, out, [11], workers=0)
    pd.testing.assert_frame_equal(plain.loc[["p011"]], alone, check_exact=True)
    record_property("figure", "4 of 4 runs give the same bits")


@pytest.mark.goal(id="R2")
def test_workers_give_a_training_the_same_batches(make_workflow_anywhere, tmp_path):
    """The trainings themselves are compared in test_kills.py."""
    batches = []
    for workers in (0, 2):
        values = {"output_dir": str(tmp_path / str(workers)), "workers": workers, "seed": 3}
        workflow = make_workflow_anywhere(values, initialize=False)
        loader = workflow.parser.get_parsed_content("train#dataloader")
        batches.append(list(itertools.islice(loader, 5)))  # it has no end
    for one, other in zip(*batches, strict=True):
        assert one["id"] == other["id"]
        assert torch.equal(one["image"].as_subclass(torch.Tensor), other["image"].as_subclass(torch.Tensor))
    assert not torch.equal(*(batch["image"].as_subclass(torch.Tensor) for batch in batches[0][:2]))
