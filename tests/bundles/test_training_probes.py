import logging

import numpy as np
import pandas as pd
import pytest
import torch
from complaints import complaint
from tiny_bundles import weights

from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.latents.probing.nested import QuickProbe

NAME = "Mustermann"
EPOCHS = {
    "max_epochs": 3, "val_interval": 1, "probe_interval": 2, "report_every": 1, "batch_size": 12, "val_batch_size": 12,
    "validate#handlers#1#most_time": 1e9,  # tiny trainings take as long as their probes
}  # fmt: skip


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """40 virtual patients with labels: numbers, two classes, one class of each patient, and the same for all."""
    table = make_virtual_cohort(
        tmp_path_factory.mktemp("probed"), num_patients=40, size=16, val_fraction=0.3, test_fraction=0.1
    )
    frame = pd.read_csv(table)
    frame["is_large"] = np.where(frame["head_size"] > frame["head_size"].median(), NAME, "other")
    frame["reader"], frame["site"] = [f"{NAME} {row}" for row in range(len(frame))], NAME
    frame.to_csv(table, index=False)
    return table


def trained(make, cohort, out, **overrides):
    make({"output_dir": str(out), "dataset_dir": str(cohort), **EPOCHS, **overrides}).run()
    return out


def validations(out):
    return pd.read_csv(out / "curves.csv").dropna(subset=["validation_loss"]).reset_index(drop=True)


def test_probes_come_every_few_epochs_and_after_the_last_step(make_workflow_anywhere, cohort, tmp_path, caplog):
    """Their scores are those of the trained bundle, and no value of a label is logged or written."""
    caplog.set_level(logging.DEBUG, logger="monai_diffae")
    out = trained(make_workflow_anywhere, cohort, tmp_path / "out")
    rows = validations(out)
    names = {name.removeprefix("validation_probe_") for name in rows if name.startswith("validation_probe_")}
    assert names == {"head_size", "tilt", "contrast", "slice_level", "ventricles", "is_large"}
    assert rows["validation_probe_is_large"].notna().tolist() == [False, True, True]
    low, high = rows["validation_low_of_probe_is_large"], rows["validation_high_of_probe_is_large"]
    assert (low.dropna() <= rows["validation_probe_is_large"].dropna()).all()
    assert (high.dropna() >= rows["validation_probe_is_large"].dropna()).all()
    assert rows["validation_neighbors_is_large"].dropna().between(0, 1).all()
    frame, bundle = pd.read_csv(cohort), load_bundle(out, "cpu")
    frame = frame[frame["split"] != "test"]
    z_sem = np.concatenate([bundle.open(cohort.parent / image).z_sem.numpy() for image in frame["image"]])
    is_train = (frame["split"] == "train").to_numpy()
    for name in ("is_large", "head_size"):
        probe = QuickProbe.choose(frame[name].tolist(), name, frame["patient"].to_numpy(), is_train)
        score = rows.iloc[-1][f"validation_probe_{name}"]
        assert score == pytest.approx(probe.scores(z_sem.astype(float)).score, abs=0.02)
    assert "not probed, as they vary too little or too few patients have them: reader, site" in caplog.text
    assert "probes of z_sem, with 95 % intervals: " in caplog.text
    assert NAME not in caplog.text
    assert [file.name for file in out.rglob("*") if file.is_file() and NAME.encode() in file.read_bytes()] == []


@pytest.mark.slow
def test_probes_change_no_weight(make_workflow, cohort, tmp_path):
    probed, without = (trained(make_workflow, cohort, tmp_path / str(n), probe_interval=n) for n in (2, 0))
    torch.testing.assert_close(weights(probed), weights(without), rtol=0, atol=0)
    assert not [name for name in validations(without) if "probe" in name]


def test_a_label_that_cannot_be_probed_is_an_error_if_it_is_named(make_workflow, cohort, tmp_path):
    line = complaint(trained, make_workflow, cohort, tmp_path / "out", max_epochs=1, probe_targets=["reader"])
    assert "target 'reader': has 35 different classes" in line
