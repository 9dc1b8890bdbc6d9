"""The command ``sample-data``; what it writes is tested in tests/data."""

import numpy as np
import pandas as pd
import pytest

from monai_diffae.apps.training.sample_data import sample_data
from monai_diffae.errors import ConfigError


def test_a_virtual_cohort_depends_on_the_arguments_alone(tmp_path):
    result = sample_data(tmp_path / "a", num_patients=3, size=16, seed=1)
    table = pd.read_csv(result.table)
    assert len(table) == 3
    assert list(result.lines()) == [str(tmp_path / "a" / "cohort.csv")]
    again, other = (sample_data(tmp_path / f"b{seed}", num_patients=3, size=16, seed=seed) for seed in (1, 0))
    pd.testing.assert_frame_equal(table, pd.read_csv(again.table))
    assert not table.equals(pd.read_csv(other.table))


def test_other_arguments_need_overwrite(tmp_path):
    sample_data(tmp_path / "a", num_patients=3, size=16)
    with pytest.raises(ConfigError):
        sample_data(tmp_path / "a", num_patients=2, size=16)
    assert len(pd.read_csv(sample_data(tmp_path / "a", num_patients=2, size=16, overwrite=True).table)) == 2


def test_a_medmnist_file_becomes_a_cohort(tmp_path):
    images, labels = np.zeros((2, 28, 28), np.uint8), np.array([[0], [1]])
    arrays = {f"{s}_{k}": v for s in ("train", "val", "test") for k, v in (("images", images), ("labels", labels))}
    np.savez(tmp_path / "tiny.npz", **arrays)
    result = sample_data(tmp_path / "tiny", medmnist=str(tmp_path / "tiny.npz"))
    assert len(pd.read_csv(result.table)) == 6


@pytest.mark.parametrize("name", ["num_patients", "spatial_dims", "seed"])
def test_arguments_of_the_virtual_cohort_are_refused_for_medmnist(tmp_path, name):
    with pytest.raises(ConfigError, match=f"^{name}: applies to the virtual cohort; omit {name} or medmnist"):
        sample_data(tmp_path, medmnist="pneumoniamnist", **{name: 2})


def test_values_out_of_range_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^spatial_dims: 4 is not one of 2, 3$"):
        sample_data(tmp_path, spatial_dims=4)
    with pytest.raises(ConfigError, match=r"^num_patients: 0 is below 1$"):
        sample_data(tmp_path, num_patients=0)
