"""What a table of embeddings was made with."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from monai_diffae import Decoding, Reading, Run, decode, edit, embed, fit_direction, load_bundle
from monai_diffae.apps.table_origin import check_same_model, origin_of, preprocessing_differences, safe_overrides
from monai_diffae.bundle.model_file import checksum
from monai_diffae.errors import ConfigError
from monai_diffae.explorer.exploration import Caller, open_exploration


def with_made_from(path, **values):
    """Changes what a table says of itself."""
    table = pd.read_parquet(path)
    table.attrs["monai_diffae"]["made_from"] |= values
    table.to_parquet(path)


@pytest.mark.goal(id="R24")
def test_tables_that_cannot_be_decoded_with_a_bundle_are_refused(labelled, tmp_path):
    path = Path(shutil.copy(labelled.embeddings, tmp_path))  # without its record, as it is sent to others
    assert origin_of(path)["model"] == checksum(labelled.bundle)
    check_same_model(path, labelled.bundle)
    for pool, option in {"mean": "pool", "patches": "patches"}.items():
        with_made_from(path, pool=pool)
        with pytest.raises(ConfigError, match=f"single images; embed the cohort without {option}$"):
            check_same_model(path, labelled.bundle)
    with_made_from(path, pool="patch")
    check_same_model(path, labelled.bundle)
    with_made_from(path, model="0" * 64)
    with pytest.raises(ConfigError, match=r"^embeddings\.parquet: another autoencoder made it; embed the cohort with"):
        check_same_model(path, labelled.bundle)


def test_a_table_without_metadata_needs_its_record(labelled, tmp_path):
    path = Path(shutil.copy(labelled.embeddings, tmp_path))
    table = pd.read_parquet(path)
    table.attrs = {}  # as other tools write it
    table.sort_values("z_000").to_parquet(path)
    message = r"^embeddings\.parquet: there is no complete record embeddings\.json beside it, so"
    with pytest.raises(ConfigError, match=message):
        origin_of(path)
    record = Path(shutil.copy(labelled.embeddings.with_suffix(".json"), tmp_path))
    assert origin_of(path)["model"] == checksum(labelled.bundle)
    record.write_text(json.dumps(json.loads(record.read_text()) | {"complete": False}))
    with pytest.raises(ConfigError, match=message):
        origin_of(path)


@pytest.mark.goal(id="R24")
def test_a_csv_that_was_copied_over_that_of_another_model_is_warned_of(labelled, tiny_bundle, tmp_path, caplog):
    """A CSV has no metadata: its record knows some of its rows. A user may have changed z_sem on purpose."""
    own = embed(labelled.bundle, labelled.cohort, tmp_path / "own" / "e.csv", device="cpu").path
    other = embed(tiny_bundle.directory, labelled.cohort, tmp_path / "other" / "e.csv", device="cpu").path
    model = checksum(labelled.bundle)
    table = pd.read_csv(own)
    for changed in (table, table.sort_values("z_000").assign(grade=1), table[:3]):
        changed.to_csv(own, index=False)
        assert origin_of(own)["model"] == model
    assert "its z_sem are not those" not in caplog.text
    shutil.copy(other, own)
    check_same_model(own, labelled.bundle)
    assert "e.csv: its z_sem are not those that the record e.json beside it describes" in caplog.text
    shutil.copy(other.with_suffix(".json"), own.with_suffix(".json"))
    assert origin_of(own)["model"] == checksum(tiny_bundle.directory)


def test_preprocessing_is_compared_and_only_plain_overrides_are_safe(labelled):
    table, config = pd.read_parquet(labelled.embeddings), load_bundle(labelled.bundle, "cpu").config
    assert preprocessing_differences(table, config) == []
    assert preprocessing_differences(table, {**config, "percentiles": [1, 99]}) == ["percentiles"]
    plain = {"slice_step": 1, "slice_range": [0.0, 1.0], "slice_axis": "coronal", "nonfinite": None}
    other = {"inferer#solver": "ddim", "imports": "$print()", "image_size": ["@a"], "network_def": {"_target_": "os"}}
    table.attrs["monai_diffae"] = {"made_from": {"overrides": {**plain, **other}}}
    assert safe_overrides(table) == plain


@pytest.mark.goal(id="R24")
def test_every_command_warns_of_z_sem_of_other_preprocessing(labelled, tmp_path, caplog):
    overrides = {"percentiles": [20, 60]}
    other = embed(labelled.bundle, labelled.cohort, tmp_path / "e.parquet", overrides=overrides, device="cpu").path
    fit_direction(other, tmp_path / "d.json", target="wide")
    bundle, cohort, ids = labelled.bundle, labelled.cohort, pd.read_csv(labelled.cohort)["id"]
    few = {"device": "cpu", "steps": 1, "invert_steps": 1}
    direction = "direction 'wide': was fitted to scans that were preprocessed in another way than here"
    table = "e.parquet: its scans were preprocessed in another way than here (percentiles differ)"

    def lines(run):
        caplog.clear()
        run()
        return [message.partition(", so ")[0] for message in caplog.messages if "preprocessed" in message]

    def edit_all(out, **more):
        files = {"direction": tmp_path / "d.json", "embeddings": other}
        edit(bundle, cohort, tmp_path / out, strengths=[1], limit=1, **files, **few, **more)

    assert lines(lambda: edit_all("edits")) == [direction, table]
    assert lines(lambda: edit_all("same", overrides=overrides)) == []
    moved = {"case": ids[0], "moves": {str(tmp_path / "d.json"): 1.0, "1": 1.0}, "embeddings": other, **few}
    assert lines(lambda: decode(bundle, tmp_path / "decoded", cohort=cohort, **moved)) == [direction, table]
    caller = Caller(bundle, cohort, other, Decoding(), Reading(), Run(device="cpu"))
    assert lines(lambda: open_exploration(caller, tmp_path, [tmp_path / "d.json"], 4).close()) == [direction, table]
