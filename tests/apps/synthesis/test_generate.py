"""The command ``generate``: images of a latent DDIM, and those that a direction accepts."""

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae import generate, load_bundle
from monai_diffae.apps.synthesis.fit_direction import fit_direction, read_direction
from monai_diffae.apps.table_origin import check_same_model
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.data.scans import read_scan
from monai_diffae.errors import CohortError, ConfigError

EXACT = {"image_format": "nii.gz", "device": "cpu"}


def images(folder):
    return {file.name: nib.load(file).get_fdata() for file in sorted((folder / "images").glob("*.nii.gz"))}


@pytest.fixture(scope="module")
def five(latent_bundle, tmp_path_factory):
    return generate(latent_bundle, tmp_path_factory.mktemp("five"), num_images=5, **EXACT)


@pytest.fixture
def copied(five, tmp_path):
    return shutil.copytree(five.folder, tmp_path / "copied")


def assert_same(images, expected):
    assert images.keys() == expected.keys()
    for name, image in images.items():
        np.testing.assert_allclose(image, expected[name], atol=1e-5)


def test_the_files_and_the_table(five, latent_bundle):
    table = pd.read_csv(five.folder / "generated.csv", dtype={"id": str})
    assert table["id"].tolist() == [f"{i:05d}" for i in range(5)]
    assert list(table.columns) == ["id", "file", "seed", "candidate"]
    assert table["candidate"].tolist() == list(range(5))
    assert all((five.folder / file).is_file() for file in table["file"])
    codes = read_embeddings(five.folder / "generated.parquet")
    assert codes["id"].tolist() == table["id"].tolist()
    assert z_matrix(codes).shape == (5, 8)
    check_same_model(five.folder / "generated.parquet", latent_bundle)  # neighbors --queries, as in report
    assert Image.open(five.folder / "generated.png").width > 100
    assert (five.num_images, five.accepted, five.skipped) == (5, 1.0, False)
    made = list(images(five.folder).values())
    assert all(np.abs(a - b).mean() > 0.01 for a, b in zip(made, made[1:], strict=False))


def test_an_image_depends_on_its_place_and_the_seed_and_not_on_the_others(five, latent_bundle, tmp_path):
    for name, changed in (("fewer", {"num_images": 3}), ("batches", {"batch_size": 2})):
        generate(latent_bundle, tmp_path / name, **{"num_images": 5, **EXACT, **changed})
        made = images(tmp_path / name)
        assert_same(made, {name: image for name, image in images(five.folder).items() if name in made})
        z_sem = z_matrix(read_embeddings(tmp_path / name / "generated.parquet"))
        np.testing.assert_array_equal(z_sem, z_matrix(read_embeddings(five.folder / "generated.parquet"))[: len(z_sem)])
    generate(latent_bundle, tmp_path / "other", num_images=1, seed=1, **EXACT)
    assert np.abs(images(tmp_path / "other")["00000.nii.gz"] - images(five.folder)["00000.nii.gz"]).max() > 0.01


@pytest.mark.goal(id="R16")
def test_a_killed_run_resumes_with_what_is_missing(five, copied, latent_bundle):
    record = json.loads((copied / "record.json").read_text())
    (copied / "record.json").write_text(json.dumps({**record, "complete": False}))  # as a killed run leaves it
    for name in ("generated.csv", "generated.parquet", "generated.png", "images/00001.nii.gz", "images/00004.nii.gz"):
        (copied / name).unlink()
    for other in ({"seed": 1}, {"image_format": "png"}):
        with pytest.raises(ConfigError, match=f"made with other {next(iter(other))}"):
            generate(latent_bundle, copied, **{"num_images": 5, **EXACT, **other})
    before = {file.name: file.stat().st_mtime_ns for file in (copied / "images").iterdir()}
    assert not generate(latent_bundle, copied, num_images=5, **EXACT).skipped
    after = {file.name: file.stat().st_mtime_ns for file in (copied / "images").iterdir()}
    assert {name: after[name] for name in before} == before
    assert_same(images(copied), images(five.folder))
    assert (copied / "generated.csv").read_bytes() == (five.folder / "generated.csv").read_bytes()


def test_in_colour_and_whatever_the_encoder_sees(unusual, with_latent, tmp_path):
    bundle = with_latent(unusual.bundle)
    generate(bundle, tmp_path / "png", num_images=2, device="cpu", direction=unusual.direction, min_probability=0.01)
    generate(bundle, tmp_path / "nii", num_images=2, direction=unusual.direction, min_probability=0.01, **EXACT)
    for i in range(2):
        png = read_scan(tmp_path / "png" / "images" / f"0000{i}.png").array / 127.5 - 1
        exact = nib.load(tmp_path / "nii" / "images" / f"0000{i}.nii.gz").get_fdata().reshape(16, 16, -1)
        assert len(png) == exact.shape[-1] == load_bundle(unusual.bundle, "cpu").image_shape[0]
        exact = np.moveaxis(exact, -1, 0)
        apart = min(np.abs(png - np.clip(each, -1, 1)).max() for each in (exact, exact.swapaxes(1, 2)))
        assert apart < 1.01 / 255


def test_more_can_be_added_and_fewer_are_there_already(five, copied, latent_bundle):
    fewer = generate(latent_bundle, copied, num_images=2, **EXACT)
    assert (fewer.skipped, fewer.num_images) == (True, 5)
    kept = {file: file.stat().st_mtime_ns for file in (copied / "images").iterdir()}
    more = generate(latent_bundle, copied, num_images=7, **EXACT)
    assert (more.skipped, more.num_images, len(pd.read_csv(copied / "generated.csv"))) == (False, 7, 7)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert generate(latent_bundle, copied, num_images=7, **EXACT).skipped


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_with_a_direction_only_what_it_takes_for_the_class_is_decoded(labelled, latent_bundle, tmp_path, side):
    direction = read_direction(labelled.direction)
    generate(latent_bundle, tmp_path / "all", num_images=16, **EXACT)
    z_sem = z_matrix(read_embeddings(tmp_path / "all" / "generated.parquet"))
    of_all = direction.predict(z_sem) if side == "positive" else 1 - direction.predict(z_sem)
    least = float(np.median(of_all))
    options = {**EXACT, "direction": labelled.direction, "side": side, "min_probability": least}
    result = generate(latent_bundle, tmp_path / "few", num_images=4, **options)
    table = pd.read_csv(result.folder / "generated.csv", dtype={"id": str})
    # nothing acceptable was passed over, and each is the image of its number
    assert table["candidate"].tolist() == np.flatnonzero(of_all >= least)[:4].tolist()
    assert result.accepted == pytest.approx(4 / (table["candidate"].iloc[-1] + 1))
    np.testing.assert_allclose(table["probability"], of_all[table["candidate"]])
    np.testing.assert_allclose(
        z_matrix(read_embeddings(result.folder / "generated.parquet")), z_sem[table["candidate"]]
    )
    whole = images(tmp_path / "all")
    for name, image in images(result.folder).items():
        place = table.set_index("id").loc[name[:5], "candidate"]
        np.testing.assert_allclose(image, whole[f"{place:05d}.nii.gz"], atol=1e-5)


def test_what_it_cannot_do_is_one_line(labelled, latent_bundle, tiny_bundle_3d, with_latent, tmp_path, monkeypatch):
    fit_direction(labelled.embeddings, tmp_path / "ventricles.json", target="ventricles")
    monkeypatch.setattr("monai_diffae.apps.synthesis.generate._MOST_CANDIDATES", 300)
    strict = {"direction": labelled.direction, "min_probability": 0.999999, "num_images": 2}
    number = {"direction": tmp_path / "ventricles.json"}
    for bundle, options, message in (
        (latent_bundle, strict, "accepted 0 of 768 z_sem, but 2 are needed; lower min_probability"),
        (latent_bundle, number, "'ventricles' is a number; use one for a label with two classes"),
        (with_latent(tiny_bundle_3d.directory), {"image_format": "png"}, "PNG cannot hold"),
        (labelled.bundle, {}, "no latent model; train it with monai-diffae train-latent"),
    ):
        with pytest.raises((ConfigError, CohortError), match=message):
            generate(bundle, tmp_path / "out", **{**EXACT, **options})


def test_sequences_are_written_as_nifti_because_they_are_no_colours(sequences, with_latent, tmp_path):
    generate(with_latent(sequences.bundle), tmp_path, num_images=1, device="cpu")
    assert nib.load(tmp_path / "images" / "00000.nii.gz").shape == (16, 16, 1, 3)
    with Image.open(tmp_path / "generated.png") as picture:
        pixels = np.asarray(picture)[:, -30:]
    assert (pixels == pixels[..., :1]).all()
