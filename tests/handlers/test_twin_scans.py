import shutil

import pandas as pd
import pytest


@pytest.fixture
def cohort_with_twins(small_cohort, tmp_path):
    """A cohort in which a validation image is a copy of a training image, with another label."""
    folder = tmp_path / "cohort"
    shutil.copytree(small_cohort.parent, folder)
    table = pd.read_csv(folder / "cohort.csv")
    first, second = (table.index[table["split"] == split][0] for split in ("train", "val"))
    shutil.copy(folder / table.loc[first, "image"], folder / table.loc[second, "image"])
    table["ill"] = [int(row == second) for row in table.index]
    table.to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv", table.loc[first, "id"], table.loc[second, "id"]


def test_a_training_warns_of_twins_in_training_and_validation(make_workflow, cohort_with_twins, caplog):
    table, first, second = cohort_with_twins
    make_workflow({"dataset_dir": str(table), "max_epochs": 1, "batch_size": 10}).run()
    lines = [record.message for record in caplog.records if "twins" in record.message]
    assert len(lines) == 2
    assert lines[0].startswith(
        f"1 group of twins in different splits: {first} (split train) and {second} (split val); "
    )
    assert lines[1].startswith(f"1 pair of twins with different labels: {first} (ill 0) and {second} (ill 1); ")
