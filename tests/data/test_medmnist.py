"""MedMNIST files as cohorts."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.medmnist import medmnist_to_cohort
from monai_diffae.errors import CohortError, ConfigError, MachineError

COUNTS = {"train": 5, "val": 2, "test": 3}


def write_npz(path, shape=(28, 28), num_labels=1, **changes):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in COUNTS.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (count, num_labels), dtype=np.uint8)
    arrays.update(changes)
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path, arrays


@pytest.mark.parametrize(("shape", "num_labels"), [((28, 28), 1), ((28, 28, 3), 3), ((28, 28, 28), 1)])
def test_images_labels_and_splits(tmp_path, shape, num_labels):
    path, arrays = write_npz(tmp_path / "set.npz", shape, num_labels)
    csv = medmnist_to_cohort(path, tmp_path / "cohort")
    table = pd.read_csv(csv)
    labels = ["label"] if num_labels == 1 else ["label_0", "label_1", "label_2"]
    assert table.columns.tolist() == ["id", "image", "split", *labels]
    assert table["split"].value_counts().to_dict() == COUNTS
    assert table["id"].is_unique
    for split in COUNTS:
        rows = table[table["split"] == split]
        np.testing.assert_array_equal(rows[labels].to_numpy(), arrays[f"{split}_labels"])
        for image, relative in zip(arrays[f"{split}_images"], rows["image"], strict=True):
            file = csv.parent / relative
            stored = nib.load(file).dataobj if shape == (28, 28, 28) else Image.open(file)
            np.testing.assert_array_equal(np.asarray(stored), image)
    assert len(read_cohort(csv)) == 10


def test_max_cases_idempotence_and_refused_overwrite(tmp_path):
    path, _ = write_npz(tmp_path / "set.npz")
    csv = medmnist_to_cohort(path, tmp_path / "cohort", max_cases=2)
    assert len(pd.read_csv(csv)) == 6
    written = csv.stat().st_mtime_ns
    medmnist_to_cohort(path, tmp_path / "cohort", max_cases=2)
    assert csv.stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="max_cases 2 instead of None"):
        medmnist_to_cohort(path, tmp_path / "cohort")
    medmnist_to_cohort(path, tmp_path / "cohort", overwrite=True)
    assert len(pd.read_csv(csv)) == 10


def test_another_file_of_the_same_name_and_size_is_noticed(tmp_path):
    path, arrays = write_npz(tmp_path / "set.npz")
    csv = medmnist_to_cohort(path, tmp_path / "cohort")
    size = path.stat().st_size
    write_npz(path, train_labels=1 - arrays["train_labels"])
    assert path.stat().st_size == size
    with pytest.raises(ConfigError, match="holds sample data with sha256 .* instead of .*; set overwrite or choose"):
        medmnist_to_cohort(path, tmp_path / "cohort")
    medmnist_to_cohort(path, tmp_path / "cohort", overwrite=True)
    labels = pd.read_csv(csv).query("split == 'train'")["label"]
    assert labels.tolist() == (1 - arrays["train_labels"][:, 0]).tolist()


def test_files_that_are_no_medmnist(tmp_path):
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(CohortError, match="copy it again"):
        medmnist_to_cohort(broken, tmp_path / "cohort")
    for changes, message in (
        ({"val_images": None}, "val_images"),
        ({"val_images": np.zeros((2, 28, 28))}, "float64"),
        ({"val_labels": np.zeros((1, 1))}, "2 images, but 1 labels"),
    ):
        path, _ = write_npz(tmp_path / "wrong.npz", **changes)
        with pytest.raises(CohortError, match=message):
            medmnist_to_cohort(path, tmp_path / "cohort")
    assert not (tmp_path / "cohort").exists()


def test_names_without_the_package_or_the_network(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no such file"):
        medmnist_to_cohort(tmp_path / "missing.npz", tmp_path / "cohort")
    medmnist = pytest.importorskip("medmnist")
    with pytest.raises(ConfigError, match="pneumoniamnist"):
        medmnist_to_cohort("pneumonia", tmp_path / "cohort")

    def fail(self, *args, **kwargs):
        raise RuntimeError("Automatic download failed!")

    monkeypatch.setattr(medmnist.dataset.MedMNIST, "download", fail)
    with pytest.raises(MachineError, match=r"pneumoniamnist\.npz"):
        medmnist_to_cohort("pneumoniamnist", tmp_path / "cohort")
