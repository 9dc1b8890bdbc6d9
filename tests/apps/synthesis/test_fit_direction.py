import json
import logging

import numpy as np
import pandas as pd
import pytest

from monai_diffae.apps.synthesis.direction_files import read_direction
from monai_diffae.apps.synthesis.fit_direction import fit_direction
from monai_diffae.data.embeddings import training_z_sem
from monai_diffae.errors import CohortError, ConfigError


def test_only_training_cases_count(labelled, table, changed, tmp_path):
    elsewhere = table["split"] != "train"
    assert elsewhere.sum() >= 4
    swapped = table["wide"].where(~elsewhere, table["wide"].map({"yes": "no", "no": "yes"}))
    moved = table["z_000"].where(~elsewhere, 99).astype(np.float32)
    fit_direction(changed(wide=swapped, z_000=moved), tmp_path / "same.json", target="wide")
    assert (tmp_path / "same.json").read_bytes() == labelled.direction.read_bytes()
    # ... and those of training do
    turned = table["wide"].map({"yes": "no", "no": "yes"})
    other = fit_direction(changed("turned", wide=turned), tmp_path / "other.json", target="wide").direction
    assert other.weight @ read_direction(labelled.direction).weight < 0
    assert len(training_z_sem(labelled.embeddings)) == (~elsewhere).sum()


def test_a_table_without_splits_counts_as_a_whole(table, changed, tmp_path):
    path = changed()
    pd.read_parquet(path).drop(columns="split").to_parquet(path)
    assert fit_direction(path, tmp_path / "d.json", target="wide").direction.num_cases == len(table)
    with pytest.raises(CohortError, match=r"^val\.parquet: the embeddings have no case of the split 'train'"):
        fit_direction(changed("val", split="val"), tmp_path / "d.json", target="wide")


def test_cases_without_the_label_are_omitted_and_counted(table, changed, tmp_path, caplog):
    first = table.index[table["split"] == "train"][0]
    with caplog.at_level(logging.INFO, "monai_diffae"):
        direction = fit_direction(changed(wide=table["wide"].drop(first)), tmp_path / "d.json", target="wide").direction
    assert (direction.num_omitted, direction.num_cases) == (1, (table["split"] == "train").sum() - 1)
    assert "1 cases without the label 'wide' are omitted" in caplog.text
    assert read_direction(tmp_path / "d.json").to_json() == direction.to_json()


def test_what_is_no_label_is_one_line(changed, labelled, tmp_path):
    path = changed(one="same", text=[f"t{i}" for i in range(12)], **{"age (y)": 3.0})
    for target, message in {
        "one": "target 'one': .* all 'same'",
        "age (y)": r"target 'age \(y\)': .* all '3'",
        "text": "target 'text': is text with .* classes",
        "weight": "target: there is no label column 'weight'; choose from: .*wide",
        "split": "target: there is no label column 'split'",
        "z_000": "target: there is no label column 'z_000'",
    }.items():
        with pytest.raises(ConfigError, match=message) as caught:
            fit_direction(path, tmp_path / "d.json", target=target)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="d.csv: directions are written as .json"):
        fit_direction(labelled.embeddings, tmp_path / "d.csv", target="wide")
    assert not (tmp_path / "d.json").exists()


@pytest.mark.goal(id="R24")
def test_infinite_labels_are_refused_whatever_the_other_labels(table, changed, labelled, tmp_path):
    training = table.index[table["split"] == "train"]
    two = pd.Series(1.0 + (table.index % 2), table.index)
    infinite = {"grade": two.mask(table.index == training[0], np.inf), "one": two.where(two == 1, np.inf)}
    for name, positive in (("grade", None), ("grade", "2"), ("one", None)):
        with pytest.raises(ConfigError, match=f"^target '{name}': contains infinite numbers; leave those labels empty"):
            fit_direction(changed(**infinite), tmp_path / "d.json", target=name, positive=positive)


def test_another_file_is_not_overwritten_unasked(labelled, tmp_path):
    path = tmp_path / "d.json"
    fit_direction(labelled.embeddings, path, target="wide")
    fit_direction(labelled.embeddings, path, target="wide")  # the same again
    with pytest.raises(ConfigError, match="^d.json: exists and is another direction"):
        fit_direction(labelled.embeddings, path, target="tilt")
    assert fit_direction(labelled.embeddings, path, target="tilt", overwrite=True).direction.target == "tilt"
    fit_direction(labelled.embeddings, path, target="wide", overwrite=True)
    assert path.read_bytes() == labelled.direction.read_bytes()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_direction_is_never_overwritten(labelled, changed, tmp_path, overwrite):
    record = changed("embeddings").with_suffix(".json")
    for content in (record.read_text(), '{"half', "", "[1]"):
        record.write_text(content)
        with pytest.raises(ConfigError, match=r"^embeddings\.json: exists and is not a direction; choose another"):
            fit_direction(labelled.embeddings, record, target="wide", overwrite=overwrite)
        assert record.read_text() == content


def test_the_command_says_what_is_wrong_with_a_target(run, table, changed, tmp_path):
    training = table.index[table["split"] == "train"]
    path = changed(one="same", gaps=table["wide"].mask(table.index.isin(training[:2])))
    fit = ["--quiet", "fit-direction", path, tmp_path / "d.json", "--target"]
    code, _, error = run(*fit, "gone")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: --target: there is no label column 'gone'; choose from: ")
    count = len(training)
    expected = f"error: target 'one': {count} of {count} cases have it, all 'same'; two classes or numbers that vary"
    assert run(*fit, "one")[::2] == (2, f"{expected} are needed\n")
    assert not (tmp_path / "d.json").exists()
    code, printed, _ = run(*fit, "gaps")
    assert code == 0
    assert f"{count - 2} training cases, 2 without the label omitted\n" in printed
    assert json.loads(run(*fit, "gaps", "--json")[1])["num_omitted"] == 2
