"""What a training shows of its figures and of its scans."""

import logging
import shutil

import pandas as pd

from monai_diffae.bundle.model_file import read_description


def test_a_training_draws_its_curves_and_warns_once(make_workflow, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "monai_diffae"):  # what --quiet sets
        workflow = make_workflow({"max_epochs": 3, "val_interval": 2, "report_every": 1, "batch_size": 10})
        workflow.run()
    # the second and the last epoch end with a validation, whose row comes after that of the training
    assert pd.read_csv(tmp_path / "out" / "curves.csv")["step"].tolist() == [1, 2, 2, 3, 3]
    assert (tmp_path / "out" / "curves.svg").is_file()
    usage = workflow.parser.get_parsed_content("validate#evaluator").state.metrics["z_sem_usage"]
    assert usage < 1.02
    (warning,) = [record.message for record in caplog.records if "hardly uses z_sem" in record.message]
    assert warning.startswith(f"z_sem_usage {usage:.3f}: ")
    assert read_description(tmp_path / "out" / "models" / "model.safetensors")["figures"]["z_sem_usage"] == usage
    assert "twins" not in caplog.text


def test_a_training_warns_of_twins_and_lists_a_bad_scan(make_workflow, small_cohort, tmp_path, caplog):
    """A validation image is a copy of a training image, with another label; another file is damaged."""
    folder = shutil.copytree(small_cohort.parent, tmp_path / "cohort")
    table = pd.read_csv(folder / "cohort.csv")
    train_rows = table[table["split"] == "train"].index
    first, bad, second = train_rows[0], train_rows[1], table.index[table["split"] == "val"][0]
    shutil.copy(folder / table.loc[first, "image"], folder / table.loc[second, "image"])
    file = folder / table.loc[bad, "image"]
    file.write_bytes(file.read_bytes()[:-50])
    table["ill"] = [int(row == second) for row in table.index]
    table.to_csv(folder / "cohort.csv", index=False)
    make_workflow({"dataset_dir": str(folder / "cohort.csv"), "max_epochs": 1, "batch_size": 10}).run()
    first, second = table.loc[first, "id"], table.loc[second, "id"]
    lines = [record.message for record in caplog.records if "twins" in record.message]
    assert len(lines) == 2
    assert lines[0].startswith(f"1 group of twins in different splits: {first} (split train) and {second} (split val)")
    assert lines[1].startswith(f"1 pair of twins with different labels: {first} (ill 0) and {second} (ill 1); ")
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert failures["file"].tolist() == [file.name]
    assert (tmp_path / "out" / "models" / "model.pt").is_file()
