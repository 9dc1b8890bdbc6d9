import shutil

import numpy as np
import pandas as pd
import pytest
from tiny_bundles import rewrite, scaled

from monai_diffae.apps.evaluation.baselines import open_images, pixel_features, read_features
from monai_diffae.apps.settings import Comparison, Reading
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.progress import Failure, write_failures
from monai_diffae.errors import CohortError, ConfigError


def read(names, bundle, cohort, table, out=None):
    comparison = Comparison(pixel_baselines=names, bundle=bundle, cohort=cohort)
    return pixel_features(comparison, table, open_images(table, comparison, Reading()), out)


@pytest.fixture
def table():
    generator = np.random.default_rng(0)
    columns = {"id": [f"c{i}" for i in range(60)], "age": generator.normal(size=60), "z_000": generator.normal(size=60)}
    return pd.DataFrame(columns)


def test_features_are_joined_by_id_and_the_target_is_none_of_them(table, tmp_path):
    other = table[["id", "age"]].assign(volume=table["age"] ** 2, word="text", patient=7, is_old=table["age"] > 0)
    other[::-1].to_csv(tmp_path / "f.csv", index=False)
    features = read_features("radiomics", tmp_path / "f.csv", table, ["age"])
    x = features.extract(np.arange(3))
    np.testing.assert_allclose(x, np.stack([table["age"] ** 2, table["age"] > 0], axis=1))
    assert features.is_available.all()
    np.testing.assert_allclose(
        read_features("f", tmp_path / "f.csv", table, []).extract(np.arange(3))[:, 0], table["age"]
    )


def test_features_that_are_text_are_named_and_a_case_may_have_any_name(table, tmp_path, caplog):
    comma = [f"{age:.3f}".replace(".", ",") for age in table["age"]]
    table.loc[:3, "id"] = ["NA", "null", "None", "007"]
    table[["id"]].assign(volume=comma, area=range(60)).to_csv(tmp_path / "f.csv", index=False)
    features = read_features("f", tmp_path / "f.csv", table, ["age"])
    assert features.is_available.all()
    assert features.extract(np.arange(3))[:, 0].tolist() == list(range(60))
    assert caplog.messages == [
        "f.csv: columns with text are not used as features: volume; write numbers with a decimal point"
    ]


def test_tables_that_cannot_be_joined_are_one_line(table, tmp_path):
    for content, message in {
        "id,x\nother,1\n": "f.csv: has none of the cases",
        "id,x\nc1,1\nc1,2\n": "f.csv: has no column id with a unique name for each case",
        "id,x\nc1,1\nc2,\n": "f: the features of 1 cases contain values that are missing, infinite or too large; fill",
    }.items():
        (tmp_path / "f.csv").write_text(content)
        with pytest.raises((CohortError, ConfigError), match=f"^{message}.*$"):
            read_features("f", tmp_path / "f.csv", table, [])


@pytest.mark.slow
def test_baselines_are_read_through_the_bundle(labelled, tmp_path):
    images = {"bundle": labelled.bundle, "cohort": labelled.cohort}
    table = read_embeddings(labelled.embeddings)
    pca, intensity = read(["pca", "intensity"], *images.values(), table[::-1], tmp_path)
    assert intensity.extract(np.arange(5)).shape == (12, 13)
    again = read(["intensity"], *images.values(), table)[0]
    np.testing.assert_allclose(intensity.extract(np.arange(5))[::-1], again.extract(np.arange(5)), atol=1e-6)
    assert pca.extract(np.arange(5)).shape == (12, 4)  # what five images span
    assert not pca.standardise


def test_a_bundle_of_other_preprocessing_than_the_table_is_refused(labelled, tmp_path, caplog):
    bundle = shutil.copytree(labelled.bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    rewrite(bundle, scaled(2))
    table = read_embeddings(labelled.embeddings)
    table.attrs["monai_diffae"]["made_from"]["overrides"] = {"preprocessing#2": "$1"}
    read(["intensity"], bundle, labelled.cohort, table)  # other weights do not matter
    assert "the table was made with overrides of preprocessing#2, which are not applied" in caplog.text
    with pytest.raises(ConfigError, match="each z_sem of the table is a mean over patches"):
        read(["intensity"], bundle, labelled.cohort, table.assign(patches=8))
    rewrite(bundle, percentiles=[10, 90])
    message = "^pixel_baselines: the preprocessing of bundle differs from that of the table: percentiles; give the bun"
    with pytest.raises(ConfigError, match=message):
        read(["intensity"], bundle, labelled.cohort, table)


def test_the_command_compares_and_writes(run, labelled, tmp_path, caplog):
    ids = read_embeddings(labelled.embeddings)["id"]
    pd.DataFrame({"id": ids, "x": range(12)}).to_csv(tmp_path / "f.csv", index=False)
    pixels = ["--pixel-baselines", "intensity", "--bundle", labelled.bundle, "--cohort", labelled.cohort]
    given = ["--baselines", f"mine={tmp_path / 'f.csv'}", "--probes", "linear"]
    command = ["probe", labelled.embeddings, tmp_path / "o", "--targets", "head_size"]
    code, printed, error = run(*command, *pixels, *given)
    assert code == 0, error
    assert "head_size (numbers): evaluated on 12 cases of 12 patients, fitted to" in printed
    assert "z_sem minus this" in printed
    assert all(name in printed for name in ("z_sem (8)", "mine (1)", "intensity statistics (13)"))
    assert printed.endswith(f"{tmp_path / 'o'}\n")
    assert "the autoencoder was trained on patients of 7 of the 12 test cases" in caplog.text
    code, _, error = run("probe", labelled.embeddings, "--targets", "wide", *pixels[:2])
    assert (code, len(error.splitlines())) == (2, 1)
    assert "--pixel-baselines: the images are read with bundle and cohort; also give both" in error


def test_unreadable_images_end_the_command_with_3(run, labelled, tmp_path):
    cohort = pd.read_csv(labelled.cohort)
    (tmp_path / "bad.png").write_bytes(b"no scan")
    cohort.loc[0, "image"] = str(tmp_path / "bad.png")
    cohort.to_csv(tmp_path / "cohort.csv", index=False)
    write_failures(tmp_path / "o" / "failures.csv", [Failure("c", "c.nii", "c.nii: empty")])  # of embed
    words = ["--targets", "head_size", "--probes", "linear", "--pixel-baselines", "intensity"]
    words += ["--bundle", labelled.bundle, "--cohort", tmp_path / "cohort.csv", "--out", tmp_path / "o"]
    for _ in range(2):  # the second time it is complete already
        code, _, error = run("-q", "probe", labelled.embeddings, *words)
        omitted = "1 case omitted: images are unreadable (see probe_failures.csv) or not in the cohort"
        assert (code, error.splitlines()[-1:]) == (3, [omitted])
    (name,) = pd.read_csv(tmp_path / "o" / "probe_failures.csv")["case_id"]
    assert name == str(read_embeddings(labelled.embeddings)["id"][0])
    assert pd.read_csv(tmp_path / "o" / "failures.csv")["case_id"].tolist() == ["c"]
