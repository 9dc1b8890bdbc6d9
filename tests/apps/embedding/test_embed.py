import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.patient_keys import KEY_FILE, folder_key
from monai_diffae.errors import CohortError, ConfigError, ScanError
from monai_diffae.inferers.exact_encoding import encode_exactly


def z_table(table):
    return table.set_index("id")[[name for name in table.columns if name.startswith("z_")]].sort_index()


@pytest.fixture(scope="module")
def embedded(tiny_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded")
    return embed(tiny_bundle.directory, tiny_bundle.cohort, out, device="cpu")


@pytest.fixture
def other_cohort(tiny_bundle, tmp_path):
    """Writes a changed copy of the tiny cohort's table, with absolute paths of its images."""

    def write(change):
        table = pd.read_csv(tiny_bundle.cohort)
        table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
        table = change(table)
        table.to_csv(tmp_path / "other.csv", index=False)
        return tmp_path / "other.csv"

    return write


def test_every_case_has_a_row_with_labels_and_z_sem(embedded, tiny_bundle):
    table, cohort = pd.read_parquet(embedded.path), pd.read_csv(tiny_bundle.cohort)
    assert (embedded.num_cases, embedded.num_failed, embedded.skipped) == (12, 0, False)
    assert list(table.columns[:3]) == ["id", "patient", "split"]
    assert table["split"].tolist() == cohort["split"].tolist()
    np.testing.assert_allclose(table["head_size"], cohort["head_size"])
    assert z_table(table).shape == (12, 8)
    assert z_table(table).dtypes.unique().tolist() == [np.float32]
    assert not any((embedded.path.parent).glob("failures.csv"))


def test_no_patient_and_no_path_is_written(embedded, tiny_bundle):
    table = pd.read_parquet(embedded.path)
    key = folder_key(embedded.path.parent)
    assert table["patient"].tolist() == [key.hash(patient) for patient in pd.read_csv(tiny_bundle.cohort)["patient"]]
    assert table.attrs["monai_diffae"]["patient_key"] == key.name
    written = [file for file in embedded.path.parent.iterdir() if key.secret.encode() in file.read_bytes()]
    assert [file.name for file in written] == [KEY_FILE]
    assert str(tiny_bundle.cohort.parent) not in embedded.path.with_suffix(".json").read_text()


@pytest.mark.goal(id="R23")
def test_z_does_not_depend_on_the_other_cases_or_their_order(embedded, tiny_bundle, other_cohort, tmp_path):
    cohort = other_cohort(lambda table: table.iloc[[7, 3, 0, 11, 5]])
    other = z_table(pd.read_parquet(embed(tiny_bundle.directory, cohort, tmp_path / "o", device="cpu").path))
    pd.testing.assert_frame_equal(z_table(pd.read_parquet(embedded.path)).loc[other.index], other, check_exact=True)


@pytest.mark.goal(id="R23")
@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 100])
def test_z_does_not_depend_on_the_batch_size(embedded, tiny_bundle, tmp_path, batch_size):
    other = embed(
        tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "z.parquet", device="cpu", batch_size=batch_size
    )
    pd.testing.assert_frame_equal(pd.read_parquet(other.path), pd.read_parquet(embedded.path), check_exact=True)


def test_encode_exactly_agrees_with_the_inferer(tiny_bundle):
    trained = load_bundle(tiny_bundle.directory, "cpu")
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = trained.inferer.encode(images, trained.network)
    torch.testing.assert_close(encode_exactly(images, trained.inferer, trained.network), expected, atol=1e-5, rtol=0)


def test_a_complete_table_is_skipped_and_one_of_another_model_refused(embedded, tiny_bundle):
    before = embedded.path.stat().st_mtime_ns
    again = embed(tiny_bundle.directory, tiny_bundle.cohort, embedded.path.parent, device="cpu")
    assert again.skipped
    assert again.num_cases == 12
    assert embedded.path.stat().st_mtime_ns == before
    record = embedded.path.with_suffix(".json")
    text = record.read_text()
    record.write_text(
        json.dumps({**json.loads(text), "made_from": {**json.loads(text)["made_from"], "model": "another"}})
    )
    with pytest.raises(ConfigError, match="exists and was made with other model; set overwrite"):
        embed(tiny_bundle.directory, tiny_bundle.cohort, embedded.path.parent, device="cpu")
    record.write_text(text)


def test_a_new_label_in_the_cohort_is_not_silently_ignored(tiny_bundle, other_cohort, tmp_path):
    cohort = other_cohort(lambda table: table)
    embed(tiny_bundle.directory, cohort, tmp_path / "o", device="cpu")
    pd.read_csv(cohort).assign(sex="F").to_csv(cohort, index=False)
    with pytest.raises(ConfigError, match="exists and was made with other labels; set overwrite"):
        embed(tiny_bundle.directory, cohort, tmp_path / "o", device="cpu")


def test_another_order_of_the_rows_is_called_so(tiny_bundle, other_cohort, tmp_path):
    cohort = other_cohort(lambda table: table)
    embed(tiny_bundle.directory, cohort, tmp_path / "o", device="cpu")
    pd.read_csv(cohort)[::-1].to_csv(cohort, index=False)
    with pytest.raises(ConfigError, match="exists and was made with other case_order; set overwrite"):
        embed(tiny_bundle.directory, cohort, tmp_path / "o", device="cpu")


def test_an_interrupted_result_is_finished_by_the_same_call(tiny_bundle, tmp_path, monkeypatch):
    record = tmp_path / "embeddings.json"
    # stopped between the table and its record
    monkeypatch.setattr("monai_diffae.apps.embedding.embed.EmbedResult", None)
    with pytest.raises(TypeError):
        embed(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, device="cpu")
    monkeypatch.undo()
    assert json.loads(record.read_text())["results"] == {}
    with pytest.raises(ConfigError, match="made with other overrides"):
        embed(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, device="cpu", overrides={"slice_step": 3})
    again = embed(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, device="cpu")
    assert not again.skipped
    results = json.loads(record.read_text())["results"]
    assert (results["num_cases"], results["num_failed"]) == (12, 0)


def test_an_overwrite_that_fails_leaves_the_old_result_and_its_record(embedded, tiny_bundle, tmp_path):
    before = embedded.path.with_suffix(".json").read_text(), embedded.path.read_bytes()
    (tmp_path / "broken.nii").write_bytes(b"no scan")
    with pytest.raises(CohortError):
        embed(tiny_bundle.directory, tmp_path / "broken.nii", embedded.path.parent, device="cpu", overwrite=True)
    assert (embedded.path.with_suffix(".json").read_text(), embedded.path.read_bytes()) == before
    embedded.path.with_name("failures.csv").unlink(missing_ok=True)


def test_weights_that_are_not_finite_are_refused(tiny_bundle, tmp_path):
    directory = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.directory, directory)
    weights = torch.load(directory / "models" / "model.pt", weights_only=True)
    next(iter(weights.values())).fill_(float("nan"))
    torch.save(weights, directory / "models" / "model.pt")
    with pytest.raises(ScanError, match=r"model\.pt: holds weights that are not finite"):
        embed(directory, tiny_bundle.cohort, tmp_path / "o", device="cpu")


def test_a_users_own_failures_table_is_left_alone(tiny_bundle, other_cohort, tmp_path):
    (tmp_path / "failures.csv").write_text("mine")
    embed(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, device="cpu")
    assert (tmp_path / "failures.csv").read_text() == "mine"


def test_a_table_with_standard_names_needs_no_names_of_the_training_table(tiny_bundle, tmp_path):
    directory = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.directory, directory)
    model = directory / "models" / "config.json"
    model.write_text(json.dumps({**json.loads(model.read_text()), "columns": {"image": "file"}}))
    assert embed(directory, tiny_bundle.cohort, tmp_path / "o", device="cpu").num_cases == 12
    images = [str(tiny_bundle.cohort.parent / image) for image in pd.read_csv(tiny_bundle.cohort)["image"]]
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"test": [{"image": image} for image in images]}))
    assert embed(directory, datalist, tmp_path / "p", device="cpu").num_cases == 12


def test_a_users_file_with_the_records_name_is_not_overwritten(tiny_bundle, tmp_path):
    (tmp_path / "z.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"z\.json: exists and is not a record of this package"):
        embed(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "z.parquet", device="cpu", overwrite=True)
    assert (tmp_path / "z.json").read_text() == "[]"


def test_bad_scans_are_listed_and_the_others_embedded(tiny_bundle, other_cohort, tmp_path):
    broken = tmp_path / "broken.nii"
    broken.write_bytes(b"no scan")
    cohort = other_cohort(lambda table: table.assign(image=[str(broken), *table["image"][1:]]))
    result = embed(tiny_bundle.directory, cohort, tmp_path / "o", device="cpu")
    assert (result.num_cases, result.num_failed) == (11, 1)
    assert "broken.nii" in (tmp_path / "o" / "failures.csv").read_text()
    assert len(pd.read_parquet(result.path)) == 11
    only_bad = other_cohort(lambda table: table.assign(image=str(broken)).iloc[:1].assign(split="train"))
    with pytest.raises(CohortError):
        embed(tiny_bundle.directory, only_bad, tmp_path / "none", device="cpu", overrides={"val_fraction": 0.0})


def test_renamed_columns_and_labels_with_reserved_names(tiny_bundle, other_cohort, tmp_path):
    rename = {"image": "file", "id": "who", "head_size": "z_000"}
    cohort = other_cohort(lambda table: table.rename(columns=rename).assign(id="label", sex="F"))
    columns = {"image": "file", "id": "who"}
    table = pd.read_parquet(embed(tiny_bundle.directory, cohort, tmp_path / "o", device="cpu", columns=columns).path)
    assert {"label_z_000", "label_id", "sex"} < set(table.columns)
    assert table["z_000"].dtype == np.float32


def test_a_bundle_whose_config_was_changed_is_another_one(tiny_bundle, tmp_path):
    directory = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.directory, directory)
    embed(directory, tiny_bundle.cohort, tmp_path / "o", device="cpu")
    model = directory / "models" / "config.json"
    model.write_text(json.dumps({**json.loads(model.read_text()), "percentiles": [20, 80]}))
    with pytest.raises(ConfigError, match=r"^embeddings\.parquet: exists and was made with other config; "):
        embed(directory, tiny_bundle.cohort, tmp_path / "o", device="cpu")


@pytest.mark.parametrize("name", ["e.parquet", "e.csv"])
def test_the_table_says_how_much_the_decoder_uses_z_sem(tiny_bundle, tmp_path, name, caplog):
    usage = load_bundle(tiny_bundle.directory, "cpu").z_sem_usage
    result = embed(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / name, device="cpu")
    assert result.z_sem_usage == usage
    assert read_embeddings(result.path).attrs["monai_diffae"]["z_sem_usage"] == usage
    assert f"z_sem_usage {usage:.3f}: the decoder hardly uses z_sem" in caplog.text


def test_scans_unlike_those_of_the_training_are_noticed(latent_bundle, labelled, other_cohort, tmp_path, caplog):
    embed(latent_bundle, labelled.cohort, tmp_path / "own", device="cpu")
    assert "unlike" not in caplog.text

    def inverted(table):
        for i, path in enumerate(table["image"]):
            scan = nib.load(path)
            data = np.asarray(scan.dataobj)
            table.loc[i, "image"] = str(tmp_path / f"{i}.nii.gz")
            nib.save(nib.Nifti1Image(data.max() - data, scan.affine), tmp_path / f"{i}.nii.gz")
        return table

    for _ in ("encoded", "complete already"):
        caplog.clear()
        embed(latent_bundle, other_cohort(inverted), tmp_path / "other", device="cpu")
        assert "12 of 12 z_sem are unlike those of the training: these scans may be of another kind" in caplog.text


@pytest.mark.parametrize("values", [{}, {"z_std": torch.zeros(8)}, {"z_std": torch.ones(3), "z_mean": torch.ones(3)}])
def test_a_damaged_latent_ddim_does_not_stop_it(latent_bundle, labelled, tmp_path, caplog, values):
    bundle = shutil.copytree(latent_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    weights = bundle / "models" / "latent_model.pt"
    torch.save({**torch.load(weights, weights_only=True), **values} if values else {}, weights)
    assert embed(bundle, labelled.cohort, tmp_path / "out", device="cpu").num_cases == 12
    assert "unlike" not in caplog.text
