import shutil

import numpy as np
import pandas as pd
import pytest
from tiny_bundles import rewrite, scaled

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.evaluation.baselines import PixelBaselines, read_features
from monai_diffae.apps.evaluation.probe import Comparison, probe
from monai_diffae.apps.settings import Reading
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.failures import Failure, write_failures
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.errors import CohortError, ConfigError


def read(names, bundle, cohort, table, out=None):
    comparison = Comparison(pixel_baselines=names, bundle=bundle, cohort=cohort)
    return PixelBaselines.open(table, comparison, Reading()).read(out)


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


def test_the_features_of_another_table_of_embeddings_are_its_codes(table, tmp_path):
    table.assign(z_001=1.0, std_000=2.0).to_parquet(tmp_path / "f.parquet")
    x = read_features("other", tmp_path / "f.parquet", table, []).extract(np.arange(3))
    np.testing.assert_allclose(x, np.stack([table["z_000"], np.ones(60), np.full(60, 2)], axis=1), rtol=1e-6)


def test_tables_that_cannot_be_joined_are_one_line(table, tmp_path):
    for content, message in {
        "id,x\nother,1\n": "f.csv: has none of the cases",
        "x\n1\n": "f.csv: has no column id",
        "id,x\nc1,1\nc1,2\n": "f.csv: 1 ids occur more than once",
        "id,x\nc1,1\nc2,\n": "f: the features of 1 cases contain values that are missing, infinite or too large; fill",
        "id,x\nc1,word\n": "f: has no features",
        "\x00": "f.csv: ",
    }.items():
        (tmp_path / "f.csv").write_text(content)
        with pytest.raises((CohortError, ConfigError), match=f"^{message}.*$"):
            read_features("f", tmp_path / "f.csv", table, [])
    table.to_parquet(tmp_path / "e.parquet")
    with pytest.raises(CohortError, match=r"^g\.csv: there is no such table of features"):
        probe(tmp_path / "e.parquet", targets=["age"], baselines={"g": tmp_path / "g.csv"})
    with pytest.raises(ConfigError, match="^baselines: there are two feature sets called 'z_sem'"):
        probe(tmp_path / "e.parquet", targets=["age"], baselines={"z_sem": np.zeros((60, 1))})


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
    options = {"targets": ["head_size"], "probes": ["linear"], **images}
    result = probe(labelled.embeddings, tmp_path / "o", pixel_baselines=["pca", "intensity"], **options)
    assert [row["features"] for row in result.rows] == ["z_sem", "PCA of pixels", "intensity statistics"]
    assert [row["dims"] for row in result.rows] == [8, 8, 13]
    again = probe(labelled.embeddings, tmp_path / "o", pixel_baselines=["pca", "intensity"], **options)
    assert (again.rows, again.skipped) == (result.rows, True)
    with pytest.raises(ConfigError, match="made with other pixel_baselines"):
        probe(labelled.embeddings, tmp_path / "o", pixel_baselines=["pca"], **options)
    assert str(tmp_path.parent) not in (tmp_path / "o" / "record.json").read_text()


def test_a_bundle_of_other_preprocessing_than_the_table_is_refused(labelled, tmp_path):
    bundle = shutil.copytree(labelled.bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    rewrite(bundle, scaled(2))
    table = read_embeddings(labelled.embeddings)
    read(["intensity"], bundle, labelled.cohort, table)  # other weights do not matter
    rewrite(bundle, percentiles=[10, 90])
    message = "^pixel_baselines: the preprocessing of bundle differs from that of the table: percentiles; give the bun"
    with pytest.raises(ConfigError, match=message):
        read(["intensity"], bundle, labelled.cohort, table)
    table.to_csv(tmp_path / "z.csv", index=False)  # has no record of what it was made with
    read(["intensity"], bundle, labelled.cohort, read_embeddings(tmp_path / "z.csv"))


@pytest.mark.slow
def test_pixels_are_of_the_slices_that_the_table_has(labelled, tmp_path):
    cohort = make_virtual_cohort(tmp_path / "heads", num_patients=3, size=16, spatial_dims=3)
    overrides = {"slice_step": 1, "percentiles": [10, 90], "inferer#steps": 2}
    path = embed(labelled.bundle, cohort, tmp_path / "e.csv", device="cpu", overrides=overrides).path
    table = read_embeddings(path)
    (intensity,) = read(["intensity"], labelled.bundle, cohort, table)
    assert len(table) == 18
    assert intensity.is_available.all()


def test_baselines_that_cannot_be_read_are_one_line(labelled, tmp_path):
    images = {"bundle": labelled.bundle, "cohort": labelled.cohort}
    with pytest.raises(ConfigError, match="^pixel_baselines: 'vae' is not one of pca, intensity"):
        probe(labelled.embeddings, targets=["wide"], pixel_baselines=["vae"], **images)
    table = read_embeddings(labelled.embeddings)
    for column, option in {"slices": "pool", "patches": "patches"}.items():
        with pytest.raises(
            CohortError, match=f"^pixel_baselines: the z_sem of this table are means .*; embed without {option}"
        ):
            read(["pca"], *images.values(), table.assign(**{column: 2}))
    with pytest.raises(CohortError, match="^pixel_baselines: no case of the table is in the cohort"):
        read(["pca"], *images.values(), table.assign(id=[f"other {i}" for i in range(12)]))


def test_a_case_without_an_image_is_omitted_and_others_of_the_cohort_do_not_count(labelled, tmp_path):
    cohort, table = pd.read_csv(labelled.cohort), read_embeddings(labelled.embeddings)
    (tmp_path / "bad.png").write_bytes(b"no scan")
    bad = cohort[:1].assign(id="another", patient="another", image=str(tmp_path / "bad.png"))
    for name, rows, num_omitted in (("more", pd.concat([cohort, bad]), 0), ("fewer", cohort[1:], 1)):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
        (pca,) = read(["pca"], labelled.bundle, tmp_path / f"{name}.csv", table)
        assert pca.is_available.sum() == 12 - num_omitted
        result = probe(
            labelled.embeddings, targets=["head_size"], probes=["linear"], pixel_baselines=["intensity"],
            bundle=labelled.bundle, cohort=tmp_path / f"{name}.csv",
        )  # fmt: skip
        assert result.num_failed == num_omitted


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
    for words, message in (
        (pixels[:2], "--pixel-baselines: the images are read with bundle and cohort; also give bundle and cohort"),
        (pixels[4:], "--cohort: is only used for pixel_baselines; set --pixel-baselines, or omit --cohort"),
        (["--baselines", "mine"], "is not of the form name=value"),
    ):
        code, _, error = run("probe", labelled.embeddings, "--targets", "wide", *words)
        assert code == 2
        assert message in error
        assert len(error.splitlines()) == 1


@pytest.fixture
def with_a_bad_scan(labelled, tmp_path):
    """The cohort, but for its first picture."""
    cohort = pd.read_csv(labelled.cohort)
    (tmp_path / "bad.png").write_bytes(b"no scan")
    cohort.loc[0, "image"] = str(tmp_path / "bad.png")
    cohort.to_csv(tmp_path / "cohort.csv", index=False)
    return tmp_path / "cohort.csv"


def test_unreadable_images_end_the_command_with_3(run, labelled, with_a_bad_scan, tmp_path):
    pixels = {"pixel_baselines": ["intensity"], "bundle": labelled.bundle, "cohort": with_a_bad_scan}
    result = probe(labelled.embeddings, targets=["head_size"], probes=["linear"], **pixels)
    assert (result.num_failed, [row["num_test"] for row in result.rows]) == (1, [11, 11])
    write_failures(tmp_path / "o" / "failures.csv", [Failure("c", "c.nii", "c.nii: empty")])  # of embed
    words = ["--targets", "head_size", "--probes", "linear", "--pixel-baselines", "intensity"]
    words += ["--bundle", labelled.bundle, "--cohort", with_a_bad_scan, "--out", tmp_path / "o"]
    for more in ([], ["--json"]):  # the second time it is complete already
        code, printed, error = run("-q", "probe", labelled.embeddings, *words, *more)
        omitted = "1 case omitted: images are unreadable (see probe_failures.csv) or not in the cohort"
        assert (code, error.splitlines()[-1:]) == (3, [omitted])
        assert "intensity statistics" in printed
    (name,) = pd.read_csv(tmp_path / "o" / "probe_failures.csv")["case_id"]
    assert name == str(read_embeddings(labelled.embeddings)["id"][0])
    assert pd.read_csv(tmp_path / "o" / "failures.csv")["case_id"].tolist() == ["c"]
