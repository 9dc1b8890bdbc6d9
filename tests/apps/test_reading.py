import json

import pandas as pd
import pytest

from monai_diffae.apps.session import read_split_cohort
from monai_diffae.apps.training.train import train
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.errors import CohortError


@pytest.fixture
def warnings_on(caplog):
    """What is said when a bundle reads a cohort."""

    def read(directory, cohort):
        caplog.clear()
        read_split_cohort(directory, load_bundle(directory, "cpu"), cohort)
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    return read


def test_a_split_that_is_drawn_anew_is_said_in_one_line(tiny_bundle, tiny_settings, warnings_on, tmp_path):
    folder, bundle = tiny_bundle.cohort.parent, init_bundle(tmp_path / "bundle", "diffae_2d")
    train(bundle, folder, overrides={**tiny_settings, "test_fraction": 0.3})
    assert warnings_on(bundle, folder) == []
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(folder / image) for image in table["image"]]
    table.to_csv(tmp_path / "split.csv", index=False)
    assert warnings_on(bundle, tmp_path / "split.csv") == []
    table.drop(columns="split").to_csv(tmp_path / "drawn.csv", index=False)
    (line,) = warnings_on(bundle, tmp_path / "drawn.csv")
    assert line.startswith("drawn.csv is not the cohort as it was listed in training: its split is drawn anew")
    assert "\n" not in line
    assert str(tmp_path) not in line
    assert warnings_on(bundle, table["image"][0]) == []  # one scan is in no split to be judged on

    description = bundle / "models" / "config.json"
    of_old_bundle = {key: value for key, value in json.loads(description.read_text()).items() if key != "_meta_"}
    description.write_text(json.dumps(of_old_bundle))
    assert warnings_on(bundle, tmp_path / "drawn.csv") == []


@pytest.mark.parametrize("word", ["patient", "image"])
def test_a_column_that_only_the_training_table_has_is_said_to_be_that(tiny_bundle, tmp_path, word):
    trained = load_bundle(tiny_bundle.directory, "cpu")
    trained.config["columns"] = {word: "key"}
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    table = table.rename(columns={word: "other"})
    table.to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(CohortError) as caught:
        read_split_cohort(tiny_bundle.directory, trained, tmp_path / "cohort.csv")
    line = str(caught.value)
    assert line.startswith(f'cohort.csv: no column "key", which was {word} in the bundle\'s training')
    assert f"--column {word}=" in line
    assert ("an empty column patient" in line) == (word == "patient")
    split, _ = read_split_cohort(tiny_bundle.directory, trained, tmp_path / "cohort.csv", {word: "other"})
    assert len(split.cases) == len(table)
    if word == "patient":
        table.assign(patient="").to_csv(tmp_path / "cohort.csv", index=False)
        split, _ = read_split_cohort(tiny_bundle.directory, trained, tmp_path / "cohort.csv")
        assert [case.patient for case in split.cases] == [case.id for case in split.cases]
