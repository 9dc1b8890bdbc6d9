import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.evaluation import neighbor_images
from monai_diffae.apps.evaluation.neighbors import neighbors
from monai_diffae.data.failures import Failure, write_failures
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.errors import CohortError, ConfigError


@pytest.fixture
def table():
    """200 cases, two per patient, whose z_sem is random."""
    z = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    columns = {
        "id": [f"c{i:03d}" for i in range(200)],
        "patient": [f"p{i // 2:03d}" for i in range(200)],
        "split": ["train"] * 140 + ["val"] * 40 + ["test"] * 20,
        "rank": range(200),
        "site": ["a", "b"] * 100,
    }
    return pd.DataFrame({**columns, **{f"z_{i:03d}": z[:, i] for i in range(6)}})


@pytest.fixture
def write(tmp_path):
    def to_file(table, name="e", model="m"):
        path = tmp_path / f"{name}.parquet"
        table.to_parquet(path, index=False)
        path.with_suffix(".json").write_text(json.dumps({"made_from": {"model": model}, "results": {"num_cases": 1}}))
        return path

    return to_file


def z_of(table):
    return table.filter(regex=r"z_\d+").to_numpy(np.float64)


def test_neighbors_are_those_of_a_plain_search_in_the_training_cases_units(table, write, tmp_path):
    table["z_000"] *= 1000
    neighbors(write(table), tmp_path / "o", k=3, cases=["c150", "c003"])
    table_of_neighbors = pd.read_csv(tmp_path / "o" / "neighbors.csv")
    z = z_of(table) / z_of(table)[:140].std(axis=0)
    assert table_of_neighbors["id"].tolist() == ["c150"] * 3 + ["c003"] * 3
    for case, rows in table_of_neighbors.groupby("id"):
        i = int(case[1:])
        distances = np.linalg.norm(z - z[i], axis=1)
        distances[(table["patient"] == table["patient"][i]).to_numpy()] = np.inf
        nearest = np.argsort(distances)[:3]
        assert rows["neighbor"].tolist() == table["id"][nearest].tolist()
        np.testing.assert_allclose(rows["distance"], distances[nearest], rtol=1e-5)
        assert rows["rank"].tolist() == [1, 2, 3]
        assert rows["label_rank"].tolist() == [i] * 3
        assert rows["neighbor_site"].tolist() == table["site"][nearest].tolist()


def test_the_same_patient_is_excluded_unless_asked_for(table, write, tmp_path):
    table.loc[1::2, "z_000":] = table.loc[::2, "z_000":].to_numpy()
    options = {"k": 1, "cases": ["c010"]}
    neighbors(write(table), tmp_path / "others", **options)
    neighbors(tmp_path / "e.parquet", tmp_path / "all", **options, same_patient=True)
    others, everyone = (pd.read_csv(tmp_path / name / "neighbors.csv") for name in ("others", "all"))
    assert everyone["neighbor"].tolist() == ["c011"]
    assert everyone["distance"].tolist() == [0]
    assert others["neighbor"].item() not in ("c010", "c011")


def test_p_values_are_calibrated_on_training_cases_and_an_outlier_has_the_lowest(table, write, tmp_path):
    table.loc[199, "z_000":] = 50.0
    result = neighbors(write(table), tmp_path / "o")
    outliers = pd.read_csv(tmp_path / "o" / "outliers.csv").set_index("id")
    assert outliers["p_distance"]["c199"] == pytest.approx(1 / 141)
    train = np.sort(outliers["p_distance"][:140])
    np.testing.assert_allclose(train, np.arange(1, 141) / 140)
    assert set(result.unusual_shares["distance"]) == {"train", "val", "test"}
    assert result.unusual_shares["distance"]["train"] == pytest.approx(6 / 140)
    assert result.unusual_shares["distance"]["val"] < 0.2


def test_whitened_scores_detect_a_case_in_an_empty_direction_and_stay_calibrated(table, write, tmp_path):
    """z_sem varies in three directions of six; one case lies in a fourth, no further out than the others."""
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    z = rng.normal(size=(200, 3)) @ axes[:3] + 0.01 * rng.normal(size=(200, 6))
    z[199] = axes[3]
    table.loc[:, "z_000":] = z.astype(np.float32)
    result = neighbors(write(table), tmp_path / "o")
    odd = pd.read_csv(tmp_path / "o" / "outliers.csv").set_index("id").loc["c199"]
    assert odd["p_whitened"] == pytest.approx(1 / 141)
    assert odd["p_distance"] > odd["p_whitened"]
    assert result.unusual_shares["whitened"]["val"] < 0.2
    noise = np.random.default_rng(2).normal(size=(200, 120)).astype(np.float32)
    wide = pd.concat([table.drop(columns=table.filter(regex=r"z_\d+")), pd.DataFrame(noise).add_prefix("z_")], axis=1)
    result = neighbors(write(wide, "wide"), tmp_path / "wide")  # nearly as many dimensions as training cases
    assert max(result.unusual_shares["whitened"][split] for split in ("val", "test")) < 0.2


def test_a_table_without_splits_or_patients_is_all_for_training(table, write, tmp_path):
    result = neighbors(write(table.drop(columns=["split", "patient", "rank", "site"])), tmp_path / "o", limit=3)
    assert result.num_cases == 3
    assert result.unusual_shares["distance"] == {"train": pytest.approx(9 / 200)}
    assert list(pd.read_csv(tmp_path / "o" / "neighbors.csv")) == ["id", "rank", "neighbor", "distance"]


@pytest.mark.parametrize("change", ["sorted", "filtered"])
def test_the_index_that_a_table_was_written_with_does_not_matter(table, write, tmp_path, change):
    table = table.sort_values("z_000") if change == "sorted" else table[table["rank"] % 3 > 0]
    path = write(table)
    neighbors(path, tmp_path / "plain")
    table.to_parquet(path)  # with its index
    neighbors(path, tmp_path / "indexed")
    for name in ("outliers.csv", "neighbors.csv"):
        assert (tmp_path / "indexed" / name).read_text() == (tmp_path / "plain" / name).read_text()


def test_queries_of_another_table(table, write, tmp_path):
    path = write(table)
    new = table.iloc[:2].assign(id=["n1", "c003"], patient=["n1", "n2"]).drop(columns=["split", "site"])
    new.loc[1, "z_000":] = -40.0
    result = neighbors(path, tmp_path / "o", queries=write(new, "new"))
    outliers = pd.read_csv(tmp_path / "o" / "outliers.csv")
    assert outliers["split"].tolist() == ["queries"] * 2
    assert outliers["p_distance"][1] == pytest.approx(1 / 141)
    assert result.unusual_shares["distance"]["queries"] == 0.5
    neighbor_table = pd.read_csv(tmp_path / "o" / "neighbors.csv")
    assert neighbor_table["neighbor"][0] == "c000"
    assert neighbor_table["distance"][0] == 0
    with pytest.raises(ConfigError, match=r"^queries: other\.parquet was made with another model"):
        neighbors(path, tmp_path / "p", queries=write(new, "other", model="another"))


def test_queries_whose_patients_have_another_key_are_warned_of(table, write, tmp_path, caplog):
    table.attrs["monai_diffae"] = {"patient_key": "one"}
    path, new = write(table), table.iloc[:2].copy()
    neighbors(path, tmp_path / "same", queries=write(new, "same_key"))
    neighbors(path, tmp_path / "synthetic", queries=write(new.drop(columns="patient"), "synthetic"))
    assert "different keys" not in caplog.text
    new.attrs["monai_diffae"] = {"patient_key": "other"}
    neighbors(path, tmp_path / "other", queries=write(new, "other_key"))
    assert "other_key.parquet and e.parquet hide their patients with different keys" in caplog.text


@pytest.mark.goal(id="R24")
def test_queries_of_other_preprocessing_are_warned_of(table, write, tmp_path, caplog):
    table.attrs["monai_diffae"] = {"preprocessing": {"percentiles": [0.5, 99.5], "preprocessing": "@percentiles"}}
    path, new = write(table), table.iloc[:2].copy()
    neighbors(path, tmp_path / "same", queries=write(new, "same"))
    assert "different preprocessing" not in caplog.text
    new.attrs["monai_diffae"] = {"preprocessing": {"percentiles": [20, 60], "preprocessing": "@percentiles"}}
    neighbors(path, tmp_path / "other", queries=write(new, "other"))
    assert "other.parquet and e.parquet were made with different preprocessing (percentiles)" in caplog.text


def test_complete_results_are_skipped(table, write, tmp_path):
    path = write(table)
    first, second = (neighbors(path, tmp_path / "o") for _ in range(2))
    assert (first.skipped, second.skipped) == (False, True)
    assert first.unusual_shares == second.unusual_shares
    with pytest.raises(ConfigError, match="made with other k"):
        neighbors(path, tmp_path / "o", k=2)
    record = (tmp_path / "o" / "neighbors.json").read_text()
    assert "c000" not in record


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"cases": ["c1"]}, CohortError, "^cases: the table has no case 'c1'"),
        ({"k": 0}, ConfigError, "^k: 0 is below 1"),
        ({"k": 139}, ConfigError, "^k: 139 is not from 1 to 138"),
        ({"split": "valid"}, ConfigError, "^split: 'valid' is not one of"),
        (
            {"reconstruction_error": True, "bundle": "b"},
            ConfigError,
            "^reconstruction_error: .* give bundle and cohort",
        ),
        ({"cohort": "b"}, ConfigError, "^cohort: .* also give bundle"),
        ({"query_cohort": "b"}, ConfigError, "^query_cohort: applies to queries"),
        ({"columns": {"image": "file"}}, ConfigError, "^columns: applies to a cohort; also give bundle and cohort"),
        ({"overrides": {"slice_step": 1}}, ConfigError, "^overrides: applies to a cohort"),
        ({"steps": 5}, ConfigError, "^steps: applies to reconstruction_error"),
    ],
)
def test_wrong_arguments_are_one_line(table, write, tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        neighbors(write(table), tmp_path / "o", **options)
    assert not (tmp_path / "o" / "neighbors.csv").exists()


def test_a_bundle_without_a_cohort_is_not_used(table, write, tmp_path):
    """A bundle run always names its own folder."""
    result = neighbors(write(table), tmp_path / "o", bundle="no_bundle")
    assert result.num_cases == 200
    assert not (tmp_path / "o" / "neighbors.png").exists()


def test_ids_that_name_two_cases_are_refused(table, write, tmp_path):
    with pytest.raises(CohortError, match="no column id with a unique name for each case"):
        neighbors(write(table.assign(id="c")), tmp_path / "o")


def test_the_picture_and_reconstruction_errors(labelled, tmp_path):
    options = {"bundle": labelled.bundle, "cohort": labelled.cohort, "device": "cpu", "k": 2}
    result = neighbors(labelled.embeddings, tmp_path / "o", split="val", reconstruction_error=True, **options)
    outliers = pd.read_csv(tmp_path / "o" / "outliers.csv")
    assert set(outliers["split"]) == {"val"}
    assert (outliers["mse_x_T"] < outliers["mse_z_sem"]).all()
    num_train = (pd.read_parquet(labelled.embeddings)["split"] == "train").sum()
    least = 1 / (1 + num_train)
    assert outliers.filter(like="p_").to_numpy().min() >= least - 1e-9
    assert set(result.unusual_shares) == {"distance", "whitened", "mse_z_sem", "mse_x_T"}
    with Image.open(tmp_path / "o" / "neighbors.png") as picture:
        assert np.asarray(picture).std() > 10
    few = {"limit": 1, "reconstruction_error": True, "num_reference": 1}
    fewer = neighbors(labelled.embeddings, tmp_path / "few", **few, **options)
    assert fewer.num_cases == 1
    assert set(pd.read_csv(tmp_path / "few" / "outliers.csv")["p_mse_x_T"]) <= {0.5, 1.0}
    with pytest.raises(ConfigError, match="made with other images"):  # decoded with other settings
        neighbors(labelled.embeddings, tmp_path / "few", steps=2, **few, **options)


def test_captions_are_drawn_only_if_they_are_asked_for(labelled, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(neighbor_images, "draw_cells", lambda rows, path, _: drawn.append(rows) or path.touch())
    options = {"bundle": labelled.bundle, "cohort": labelled.cohort, "device": "cpu", "k": 2, "limit": 1}
    result = neighbors(labelled.embeddings, tmp_path / "plain", **options)
    neighbors(labelled.embeddings, tmp_path / "named", **options, captions=["id", "wide"])
    table = pd.read_csv(result.folder / "neighbors.csv")
    texts = [text for _, text in drawn[0][0]]
    assert texts == ["case 1", *(f"{distance:.3g}" for distance in table["distance"])]
    labels = [f"{table['id'][0]}\nwide {table['wide'][0]}"]
    labels += [f"{row.neighbor}\nwide {row.neighbor_wide}" for row in table.itertuples()]
    assert [text for _, text in drawn[1][0]] == [f"{text}\n{label}" for text, label in zip(texts, labels, strict=True)]
    with pytest.raises(ConfigError, match="captions: there is no 'name'; choose from: id, .*wide"):
        neighbors(labelled.embeddings, tmp_path / "none", **options, captions=["name"])
    with pytest.raises(ConfigError, match="captions: apply to the picture; also give bundle and cohort"):
        neighbors(labelled.embeddings, tmp_path / "none", captions=["id"])


def test_images_that_are_not_those_of_the_table_are_noticed(labelled, tmp_path, caplog):
    options = {"bundle": labelled.bundle, "device": "cpu", "k": 2, "limit": 1}
    neighbors(labelled.embeddings, tmp_path / "same", cohort=labelled.cohort, **options)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    cohort = pd.read_csv(labelled.cohort)
    Image.linear_gradient("L").resize((16, 16)).save(tmp_path / "other.png")
    cohort.loc[3, "image"] = str(tmp_path / "other.png")
    cohort.to_csv(tmp_path / "changed.csv", index=False)
    overrides = {"percentiles": [10, 90]}
    neighbors(labelled.embeddings, tmp_path / "o", cohort=tmp_path / "changed.csv", overrides=overrides, **options)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "images: the preprocessing of bundle differs from that of embeddings.parquet: percentiles",
        "images: changed.csv has changed since the table was made (its cases, splits or file sizes); an id may now "
        "belong to another image",
    ]


def test_images_of_another_cohort_and_unreadable_scans(run, labelled, tmp_path):
    """Two pictures of noise, and one that has become unreadable."""
    rng = np.random.default_rng(0)
    for name in ("noise", "gone", "more"):
        Image.fromarray(rng.integers(256, size=(16, 16), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    new = tmp_path / "new.csv"
    pd.DataFrame({"image": ["noise.png", "gone.png", "more.png"], "id": ["noise", "gone", "more"]}).to_csv(new)
    queries = embed(labelled.bundle, new, tmp_path / "new", device="cpu").path
    (tmp_path / "gone.png").write_bytes(b"no scan")
    write_failures(tmp_path / "o" / "failures.csv", [Failure("c", "c.nii", "c.nii: empty")])  # of embed
    result = neighbors(
        labelled.embeddings, tmp_path / "o", queries=queries, bundle=labelled.bundle, cohort=labelled.cohort,
        query_cohort=new, reconstruction_error=True, k=3, device="cpu",
    )  # fmt: skip
    outliers = pd.read_csv(tmp_path / "o" / "outliers.csv").set_index("id")
    assert result.num_failed == 1
    assert outliers["mse_x_T"].isna().tolist() == [False, True, False]
    assert outliers["p_distance"].notna().all()
    assert pd.read_csv(tmp_path / "o" / "neighbors_failures.csv")["case_id"].tolist() == ["gone"]
    assert pd.read_csv(tmp_path / "o" / "failures.csv")["case_id"].tolist() == ["c"]
    files = ["--queries", queries, "--bundle", labelled.bundle, "--cohort", labelled.cohort, "--query-cohort", new]
    code, _, error = run("-q", "neighbors", labelled.embeddings, tmp_path / "c", *files, "--device", "cpu")
    assert (code, error.splitlines()[-1]) == (3, "1 images could not be read: see neighbors_failures.csv")


def test_gross_outliers_have_the_lowest_p_and_unseen_heads_do_not(labelled, tmp_path):
    """Noise, a head with inverted contrast and another object, beside heads of unseen patients."""
    cohort = make_virtual_cohort(tmp_path / "heads", num_patients=80, size=16, val_fraction=0.2, test_fraction=0.1)
    heads = embed(labelled.bundle, cohort, tmp_path / "e", device="cpu").path
    head = nib.load(cohort.parent / pd.read_csv(cohort)["image"][0]).get_fdata().squeeze()
    head = 255 * (head - head.min()) / np.ptp(head)
    wedge = np.linspace(0, 255, 256).reshape(16, 16)
    odd = {"noise": np.random.default_rng(0).integers(256, size=(16, 16)), "inverted": 255 - head, "wedge": wedge}
    for name, pixels in odd.items():
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{name}.png")
    pd.DataFrame({"image": [f"{name}.png" for name in odd], "id": list(odd)}).to_csv(tmp_path / "odd.csv", index=False)
    queries = embed(labelled.bundle, tmp_path / "odd.csv", tmp_path / "odd", device="cpu").path
    result = neighbors(heads, tmp_path / "o", queries=queries)
    least = 1 / (1 + (pd.read_parquet(heads)["split"] == "train").sum())
    outliers = pd.read_csv(tmp_path / "o" / "outliers.csv")
    assert least < 0.02
    np.testing.assert_allclose(outliers[["p_distance", "p_whitened"]], least)
    assert max(result.unusual_shares[score]["val"] for score in ("distance", "whitened")) < 0.3


def test_volumes_and_another_model(tiny_bundle_3d, labelled, tmp_path):
    path = embed(tiny_bundle_3d.directory, tiny_bundle_3d.cohort, tmp_path / "e", device="cpu").path
    options = {"cohort": tiny_bundle_3d.cohort, "device": "cpu", "k": 2, "limit": 2}
    neighbors(path, tmp_path / "o", bundle=tiny_bundle_3d.directory, **options)
    with Image.open(tmp_path / "o" / "neighbors.png") as picture:
        assert picture.width > 2 * picture.height
    with pytest.raises(ConfigError, match="another autoencoder made it"):
        neighbors(path, tmp_path / "p", bundle=labelled.bundle, **options)


def test_the_command(run, table, write, tmp_path):
    code, printed, error = run("neighbors", write(table), tmp_path / "o", "--cases", "c001", "--k", 2)
    assert code == 0, error
    assert "distance: p < .05 for 4.3% of train" in printed
    assert printed.splitlines()[-1] == str(tmp_path / "o")
    shutil.rmtree(tmp_path / "o")
    code, printed, _ = run("--quiet", "neighbors", tmp_path / "e.parquet", "--out", tmp_path / "o", "--json")
    assert json.loads(printed)["num_cases"] == 200
    assert "Example: monai-diffae neighbors" in " ".join(run("neighbors", "--help")[1].split())
