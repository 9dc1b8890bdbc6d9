import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.evaluation import baselines as probe_features
from monai_diffae.apps.evaluation.baselines import PixelBaselines, read_features
from monai_diffae.apps.evaluation.probe import probe
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.failures import Failure, write_failures
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents.probing.features import FeatureSet, intensity_statistics


def read(pixels, table, out=None):
    return pixels.read(table, pixels.open(table), out)


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
    assert features.there.all()
    np.testing.assert_allclose(
        read_features("f", tmp_path / "f.csv", table, []).extract(np.arange(3))[:, 0], table["age"]
    )


@pytest.mark.parametrize("name", ["NA", "null", "nan", "None", "007"])
def test_a_case_may_have_any_name(table, tmp_path, name):
    table.loc[3, "id"] = name
    pd.DataFrame({"id": table["id"], "x": range(60)}).to_csv(tmp_path / "f.csv", index=False)
    features = read_features("f", tmp_path / "f.csv", table, [])
    assert features.there.all()
    assert features.extract(np.arange(3))[:, 0].tolist() == list(range(60))


def test_of_another_table_of_embeddings_only_the_codes_are_features(table, tmp_path):
    table.assign(z_001=1.0, std_000=2.0).to_parquet(tmp_path / "f.parquet")
    x = read_features("other", tmp_path / "f.parquet", table, []).extract(np.arange(3))
    np.testing.assert_allclose(x, np.stack([table["z_000"], np.ones(60), np.full(60, 2)], axis=1), rtol=1e-6)


def test_all_features_are_judged_on_the_cases_that_have_all(table, tmp_path, caplog):
    table.to_parquet(tmp_path / "e.parquet")
    pd.DataFrame({"id": table["id"][:50], "x": range(50)}).to_csv(tmp_path / "f.csv", index=False)
    rows = probe(tmp_path / "e.parquet", "age", baselines={"f": tmp_path / "f.csv"}, probes=["linear"])
    assert [row["num_test"] for row in rows] == [50, 50]
    assert "10 cases are left out: not all features have them" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,x\nother,1\n", "f.csv: it has none of the cases"),
        ("x\n1\n", "f.csv: it has no column id"),
        ("id,x\nc1,1\nc1,2\n", "f.csv: 1 ids are there more than once"),
        ("id,x\nc1,1\nc2,\n", "f: the features of 1 cases hold values that are too large or not finite; fill them in"),
        ("id,x\nc1,word\n", "f: it has no features"),
        ("\x00", "f.csv: "),
    ],
)
def test_tables_that_cannot_be_joined_are_one_line(table, tmp_path, content, message):
    (tmp_path / "f.csv").write_text(content)
    with pytest.raises((CohortError, ConfigError), match=f"^{message}") as caught:
        read_features("f", tmp_path / "f.csv", table, [])
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there_and_a_name_that_is_taken(table, tmp_path):
    table.to_parquet(tmp_path / "e.parquet")
    for out in (None, tmp_path / "o"):
        with pytest.raises(CohortError, match=r"^f\.csv: there is no such file of features"):
            probe(tmp_path / "e.parquet", "age", baselines={"f": tmp_path / "f.csv"}, out=out)
    with pytest.raises(ConfigError, match="^features: 'z_sem' are there twice"):
        probe(tmp_path / "e.parquet", "age", baselines={"z_sem": np.zeros((60, 1))})


def test_pca_is_fitted_to_the_training_cases_of_a_fold():
    images = np.random.default_rng(1).normal(size=(30, 1, 4, 4)).astype(np.float32)
    changed = images.copy()
    changed[20:] *= 50
    train = np.arange(20)
    first, second = (FeatureSet.pca(x, 3).extract(train) for x in (images, changed))
    np.testing.assert_allclose(first[:20], second[:20], atol=1e-5)
    assert not np.allclose(first, FeatureSet.pca(images, 3).extract(train + 10), atol=0.1)


def test_intensity_statistics_are_moments_and_deciles():
    images = np.random.default_rng(2).normal(3, 2, size=(2, 2, 50, 50))
    found = intensity_statistics(images)
    assert found.shape == (2, 26)
    np.testing.assert_allclose(found[:, :2], [[3, 3]] * 2, atol=0.15)
    np.testing.assert_allclose(found[0, 2 * 8], np.median(images[0, 0]))
    assert np.isfinite(intensity_statistics(np.zeros((1, 1, 4, 4)))).all()


def test_baselines_are_read_through_the_bundle(labelled, tmp_path):
    pixels = PixelBaselines(("pca", "intensity"), labelled.bundle, labelled.cohort)
    table = read_embeddings(labelled.embeddings)
    pca, intensity = read(pixels, table[::-1], tmp_path)
    assert intensity.extract(np.arange(5)).shape == (12, 13)
    np.testing.assert_allclose(
        intensity.extract(np.arange(5))[::-1], read(pixels, table)[1].extract(np.arange(5)), atol=1e-6
    )
    assert pca.extract(np.arange(5)).shape == (12, 4)  # what five images span
    assert not pca.standardise
    rows = probe(labelled.embeddings, "wide", pixels=pixels, out=tmp_path / "o", probes=["linear"])
    assert [row["features"] for row in rows] == ["z_sem", "PCA of pixels", "intensity statistics"]
    assert [row["dims"] for row in rows] == [8, 8, 13]
    assert probe(labelled.embeddings, "wide", pixels=pixels, out=tmp_path / "o", probes=["linear"]) == rows
    fewer = PixelBaselines(("pca",), labelled.bundle, labelled.cohort)
    with pytest.raises(ConfigError, match="made with other pixels"):
        probe(labelled.embeddings, "wide", pixels=fewer, out=tmp_path / "o", probes=["linear"])
    assert str(tmp_path.parent) not in (tmp_path / "o" / "probe.json").read_text()


def test_pixels_are_those_that_the_tables_encoder_saw(labelled, tmp_path, caplog):
    bundle = shutil.copytree(labelled.bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({name: 2 * value for name, value in weights.items()}, bundle / "models" / "model.pt")
    table = read_embeddings(labelled.embeddings)
    pixels = PixelBaselines(("intensity",), bundle, labelled.cohort)
    read(pixels, table)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    config = json.loads((bundle / "models" / "config.json").read_text())
    (bundle / "models" / "config.json").write_text(json.dumps({**config, "percentiles": [10, 90]}))
    other = PixelBaselines(("intensity",), bundle, labelled.cohort)
    message = (
        "^baseline: bundle prepares images otherwise than the bundle that made the table did: percentiles; name that "
        "bundle, or give the features as a table$"
    )
    with pytest.raises(ConfigError, match=message):
        probe(labelled.embeddings, "wide", pixels=other, out=tmp_path / "o", probes=["linear"])
    table.to_csv(tmp_path / "z.csv", index=False)  # does not say what it was made with
    read(other, read_embeddings(tmp_path / "z.csv"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("name", ["e.parquet", "e.csv"])
def test_pixels_are_of_the_slices_that_the_table_has(labelled, tmp_path, name):
    cohort = make_virtual_cohort(tmp_path / "heads", num_patients=3, size=16, spatial_dims=3)
    overrides = {"slice_step": 1, "percentiles": [10, 90], "inferer#steps": 2}
    path = embed(labelled.bundle, cohort, tmp_path / name, device="cpu", overrides=overrides).path
    table = read_embeddings(path)
    (intensity,) = read(PixelBaselines(("intensity",), labelled.bundle, cohort), table)
    assert len(table) == 18
    assert intensity.there.all()


def test_what_a_tables_metadata_say_is_not_run(labelled, tmp_path):
    cohort = make_virtual_cohort(tmp_path / "heads", num_patients=3, size=16, spatial_dims=3)
    table = read_embeddings(embed(labelled.bundle, cohort, tmp_path / "e", device="cpu").path)
    touch = f"$__import__('pathlib').Path({str(tmp_path / 'run')!r}).touch()"
    component = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "run")}
    for overrides in (
        {"slice_step": touch}, {"slice_range": [0, touch]}, {"slice_range": component}, {"columns": {"id": touch}},
        {"preprocessing#transforms#0#_target_": "pathlib.Path.touch"}, {"slice_axis": "@preprocessing"},
        {"slice_axis": "%/etc/passwd"}, ["slice_step"], None,
    ):  # fmt: skip
        table.attrs["monai_diffae"]["made_from"]["overrides"] = overrides
        (intensity,) = read(PixelBaselines(("intensity",), labelled.bundle, cohort), table)
        assert intensity.there.all()
    assert not (tmp_path / "run").exists()


def test_other_images_under_the_same_ids_are_noticed(labelled, tmp_path, caplog):
    cohort = pd.read_csv(labelled.cohort)
    Image.linear_gradient("L").resize((16, 16)).save(tmp_path / "other.png")
    cohort.loc[1, "image"] = str(tmp_path / "other.png")
    cohort.to_csv(tmp_path / "cohort.csv", index=False)
    table = read_embeddings(labelled.embeddings)
    read(PixelBaselines(("intensity",), labelled.bundle, tmp_path / "cohort.csv"), table)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "baseline: cohort.csv is not as it was when the table was made (its cases, splits or the sizes of its files); "
        "an id may be of another image now"
    ]


def test_baselines_that_cannot_be_read_are_one_line(labelled, tmp_path):
    with pytest.raises(ConfigError, match="^baseline: 'vae' is not one of pca, intensity"):
        PixelBaselines(("vae",), labelled.bundle, labelled.cohort)
    pixels = PixelBaselines(("pca",), labelled.bundle, labelled.cohort)
    table = read_embeddings(labelled.embeddings)
    with pytest.raises(CohortError, match="^baseline: the table's z_sem are pooled"):
        read(pixels, table.assign(slices=2))
    with pytest.raises(
        CohortError, match="^baseline: the table's z_sem are means over whole scans.* without --patches"
    ):
        read(pixels, table.assign(patches=2))
    with pytest.raises(CohortError, match="^baseline: no case of the table is in the cohort"):
        read(pixels, table.assign(id=[f"other {i}" for i in range(12)]))


def test_much_memory_is_said(labelled, monkeypatch, caplog):
    monkeypatch.setattr(probe_features, "_MUCH_GIB", 0)
    read(PixelBaselines(("intensity",), labelled.bundle, labelled.cohort), read_embeddings(labelled.embeddings))
    assert "the images of 12 cases take 0.0 GiB of memory" in caplog.text


def test_a_case_whose_image_is_gone_is_left_out(labelled, tmp_path):
    cohort = pd.read_csv(labelled.cohort)[1:]
    cohort.to_csv(tmp_path / "cohort.csv", index=False)
    (pca,) = read(
        PixelBaselines(("pca",), labelled.bundle, tmp_path / "cohort.csv"), read_embeddings(labelled.embeddings)
    )
    assert pca.there.sum() == 11
    assert np.isnan(pca.extract(np.flatnonzero(pca.there))).any(axis=1).sum() == 1


def test_what_is_left_out_is_counted_among_the_tables_cases(labelled, tmp_path):
    cohort = pd.read_csv(labelled.cohort).assign(image=lambda t: [str(labelled.cohort.parent / f) for f in t["image"]])
    (tmp_path / "bad.png").write_bytes(b"no scan")
    bad = cohort[:1].assign(id="another", patient="another", image=str(tmp_path / "bad.png"))
    for name, rows, num in (("more", pd.concat([cohort, bad]), 0), ("fewer", cohort[1:], 1)):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
        pixels = PixelBaselines(("intensity",), labelled.bundle, tmp_path / f"{name}.csv")
        assert probe(labelled.embeddings, "wide", pixels=pixels, probes=["linear"]).num_failed == num


def test_values_of_a_component_are_not_taken_over_which_is_said(labelled, caplog):
    table = read_embeddings(labelled.embeddings)
    said = {"inferer#steps": 5, "preprocessing#transforms#0#axis": "sagittal"}
    table.attrs["monai_diffae"]["made_from"]["overrides"] = said
    read(PixelBaselines(("intensity",), labelled.bundle, labelled.cohort), table)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        "baseline: the table was made with --set preprocessing#transforms#0#axis, which is not taken over; its images "
        "may be others"
    ]


def test_the_command_compares_and_writes(run, labelled, tmp_path, caplog):
    pd.DataFrame({"id": read_embeddings(labelled.embeddings)["id"], "x": range(12)}).to_csv(
        tmp_path / "f.csv", index=False
    )
    pixels = ["--baseline", "intensity", "--bundle", labelled.bundle, "--cohort", labelled.cohort]
    given = ["--features", f"mine={tmp_path / 'f.csv'}", "--probes", "linear", "--out", tmp_path / "o"]
    code, printed, error = run("probe", labelled.embeddings, "--target", "wide", *pixels, *given)
    assert code == 0, error
    assert "wide: judged on 12 cases of 12 patients, fitted to" in printed
    assert "z_sem less this" in printed
    assert all(name in printed for name in ("z_sem (8)", "mine (1)", "intensity statistics (13)"))
    assert printed.endswith(f"{tmp_path / 'o'}\n")
    assert "7 of the 12 judged cases are of patients that the autoencoder was trained on" in caplog.text
    code, printed, _ = run("probe", labelled.embeddings, "--target", "tilt", "--splits", "train")
    assert "tilt" in printed
    assert "R2" in printed
    for words, message in (
        (["--baseline", "pca"], "--baseline: the images are read through a bundle; give --bundle and --cohort too"),
        (pixels[2:4], "--bundle: is for --baseline; give that too, or leave it out"),
        (pixels[4:], "--cohort: is for --baseline; give that too, or leave it out"),
        (["--features", "mine"], "--features: 'mine' is not of the form name=value"),
        (["--probes", ","], "probes: nothing is not one of linear, knn, boosting"),
    ):
        code, _, error = run("probe", labelled.embeddings, "--target", "wide", *words)
        assert (code, error) == (2, f"error: {message}\n")


@pytest.fixture
def with_a_bad_scan(labelled, tmp_path):
    """The cohort, but for its first picture."""
    cohort = pd.read_csv(labelled.cohort)
    (tmp_path / "bad.png").write_bytes(b"no scan")
    cohort.loc[0, "image"] = str(tmp_path / "bad.png")
    cohort.to_csv(tmp_path / "cohort.csv", index=False)
    return tmp_path / "cohort.csv"


def test_unreadable_images_are_listed_beside_the_list_of_embed(labelled, with_a_bad_scan, tmp_path):
    table = read_embeddings(labelled.embeddings)
    write_failures(tmp_path / "failures.csv", [Failure("c", "c.nii", "c.nii: empty")])
    read(PixelBaselines(("intensity",), labelled.bundle, with_a_bad_scan), table, tmp_path)
    assert pd.read_csv(tmp_path / "failures.csv")["case_id"].tolist() == ["c"]
    assert pd.read_csv(tmp_path / "probe_failures.csv")["case_id"].tolist() == [str(table["id"][0])]


def test_unreadable_images_end_the_command_with_3(run, labelled, with_a_bad_scan, tmp_path):
    pixels = PixelBaselines(("intensity",), labelled.bundle, with_a_bad_scan)
    rows = probe(labelled.embeddings, "wide", pixels=pixels, probes=["linear"])
    assert (rows.num_failed, [row["num_test"] for row in rows]) == (1, [11, 11])
    words = ["--target", "wide", "--probes", "linear", "--baseline", "intensity"]
    words += ["--bundle", labelled.bundle, "--cohort", with_a_bad_scan]
    out = ["--out", tmp_path / "o"]
    for more, where in (
        ([], "name a folder with --out for a list"), (out, "probe_failures.csv"),
        ([*out, "--json"], "probe_failures.csv"),  # complete already
    ):  # fmt: skip
        code, printed, error = run("-q", "probe", labelled.embeddings, *words, *more)
        left_out = f"1 cases are left out, for their images cannot be read ({where}) or are not in the cohort"
        assert (code, error.splitlines()[-1:]) == (3, [left_out])
        assert "intensity statistics" in printed
    assert len(pd.read_csv(tmp_path / "o" / "probe_failures.csv")) == 1
