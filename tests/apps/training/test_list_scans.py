"""The commands list-scans, sample-data and demo: their lines, figures and tables."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae import demo, list_scans, plan, sample_data
from monai_diffae.data import CachedCases, read_cohort
from monai_diffae.data.cases import label_names
from monai_diffae.data.inspection.survey import other_channels
from monai_diffae.data.inspection.twins import ADVICE
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.handlers import BadScans
from monai_diffae.transforms.reading import ReadScand


def test_a_folder_becomes_a_table(tmp_path):
    for name in ("benign/a.png", "benign/b.png", "malignant/c.png", "malignant/d.png", "malignant/e.gif"):
        (tmp_path / "us" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "us" / name).write_bytes(b"...")
    result = list_scans(tmp_path / "us", tmp_path / "scans.csv")
    assert list(result.lines()) == [
        "us: 4 scans (4 .png)",
        "patients: not known, so each scan counts as a patient (--patient-pattern finds them in the paths)",
        "files that cannot be read are left out: 1 .gif; convert them to .nii.gz or .png",
        "the folders benign, malignant are classes: column label (--no-labels-from-folders omits it)",
        "column label: 2 benign, 2 malignant",
        "4 cannot be read (label: 2 of 2 benign, 2 of 2 malignant), the first: a.png: this is not a readable "
        "PNG/JPEG/BMP; export it again, with 8 or 16 bits per value",
        str(tmp_path / "scans.csv"),
        f"next: monai-diffae plan {tmp_path / 'scans.csv'}",
    ]
    assert json.loads(json.dumps(result.json()))["labels"] == {"label": {"benign": 2, "malignant": 2}}
    assert len(read_cohort(result.table)) == 4
    assert list_scans(tmp_path / "us", tmp_path / "scans.csv").table == result.table


@pytest.fixture
def pictures(tmp_path):
    """Six pictures in class folders, of which one is in both classes."""
    images = np.random.default_rng(0).integers(0, 255, (6, 48, 48), np.uint8)
    for number, image in enumerate(images):
        file = tmp_path / "us" / ("benign" if number < 3 else "malignant") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    Image.fromarray(images[1]).save(tmp_path / "us" / "malignant" / "copy.png")
    return tmp_path / "us"


def test_twins_are_listed_and_marked(pictures, tmp_path):
    result = list_scans(pictures, tmp_path / "scans.csv")
    assert [line for line in result.lines() if "twins " in line or "twins:" in line] == [
        "twins: 2 scans in 1 group are identical or nearly so (1 identical, patients unknown): 1 = copy",
        f"a random split may separate them; {ADVICE}",
        "1 pair of twins with different labels: 1 (label benign) and copy (label malignant); correct or remove them",
    ]
    assert result.figures["twins"]["groups"] == [["1", "copy"]]
    assert result.figures["twins"]["contradictory"][0]["values"] == ["benign", "malignant"]
    cases = read_cohort(result.table)
    assert {case.id for case in cases if case.labels["twins"] == "group 1"} == {"1", "copy"}
    assert label_names(cases) == ["label"]  # the mark is none
    again = list_scans(result.table, tmp_path / "again.csv", skip_twins=True)
    assert [line for line in again.lines() if line.startswith("column ")] == ["column label: 3 benign, 4 malignant"]
    assert "twins" in pd.read_csv(again.table)
    own = pd.read_csv(result.table).assign(twins=["yes", "no", "no"] * 2 + ["no"])
    own.to_csv(result.table, index=False)
    assert label_names(read_cohort(result.table)) == ["label", "twins"]


def test_twins_become_one_patient(pictures, tmp_path):
    table = list_scans(pictures, tmp_path / "scans.csv", group_duplicates=True).table
    cases = read_cohort(table)
    assert len({case.patient for case in cases}) == 6
    assert len({case.patient for case in cases if case.id in ("1", "copy")}) == 1
    again = list_scans(table, tmp_path / "again.csv")
    assert again.twins["num_of_different_patients"] == 0
    assert "patients: not known, so each scan counts as a patient" in "\n".join(again.lines())  # twins tell no patient


def test_names_that_look_like_several_scans_of_a_patient_cost_one_line_with_a_pattern_that_works(tmp_path):
    (tmp_path / "slices").mkdir()
    for number in range(24):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "slices" / f"case{number // 2}_{number % 2}.png")
    line = next(line for line in list_scans(tmp_path / "slices", tmp_path / "a.csv").lines() if "beginnings" in line)
    assert line.startswith("the names have 12 beginnings before a last number")
    pattern = line.split("'")[1]
    found = list_scans(tmp_path / "slices", tmp_path / "b.csv", patient_pattern=pattern)
    assert "patients: 12" in found.lines()


@pytest.fixture
def coloured(tmp_path):
    """63 pictures of which the first 32 would not tell: 3 are in colour, one is transparent, all of one class."""
    rng = np.random.default_rng(0)
    for number in range(63):
        folder = tmp_path / "scans" / ("ill" if number > 40 else "well")
        folder.mkdir(parents=True, exist_ok=True)
        mode = {41: "RGB", 42: "RGB", 43: "RGB", 44: "LA"}.get(number, "L")
        image = Image.fromarray(rng.integers(0, 255, (9, 9, 3 if mode == "RGB" else 1), np.uint8).squeeze())
        image = Image.merge("LA", [image, image]) if mode == "LA" else image.convert("RGB" if number % 2 else mode)
        image.save(folder / f"{number}.png")
    return tmp_path / "scans"


def test_colour_and_transparency_of_all_scans_are_listed_by_class(coloured, tmp_path):
    table = tmp_path / "scans.csv"
    lines = list(list_scans(coloured, table).lines())
    colour = "3 are in colour (label: 3 of 22 ill, 0 of 41 well)"
    assert f"{colour}: train with --colour grey or --colour rgb, or they are left out" in lines
    assert "1 cannot be read (label: 1 of 22 ill, 0 of 41 well), the first: 44.png: the picture is" in "\n".join(lines)
    assert lines[-1] == f"next: monai-diffae plan {table} --colour grey"


def test_what_is_refused_for_its_colour_is_known_by_class_before_training(coloured, machine, tmp_path, caplog):
    table = list_scans(coloured, tmp_path / "scans.csv", skip_twins=True).table
    small = {"image_size": [16, 16], "channel_mult": [1], "base_channels": 4, "batch_size": 2, "val_batch_size": 2}
    assert (
        next(plan(table, device="cpu", overrides=small).lines())
        == "59 scans can be used, 4 cannot (label: 4 of 22 ill, 0 of 41 well)"
    )
    cases = read_cohort(table)
    assert [len(other_channels(cases, *choice)) for choice in ((1, "grey"), (3, "rgb"))] == [1, 1]
    read = CachedCases([case.item() for case in cases], ReadScand("image", 2, channels=1))
    BadScans(tmp_path, [read], cases=cases)()
    assert "4 cases cannot be used (label: 4 of 22 ill, 0 of 41 well); failures.csv lists them" in caplog.text


@pytest.mark.goal(id="R21")
def test_hashed_ids_have_no_names_of_files_and_labels_are_joined(tmp_path, run):
    for number in (1, 2):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"doe{number}.png")
    (tmp_path / "labels.csv").write_text("file,patient,age\ndoe1.png,Jane Doe,41\ndoe2.png,Jane Doe,42\n")
    args = ("list-scans", str(tmp_path), str(tmp_path / "private" / "scans.csv"), "--ids", "hashed", "--skip-twins")
    code, printed, _ = run(*args, "--table", str(tmp_path / "labels.csv"))
    assert code == 0
    assert "patients: 1" in printed
    cases = read_cohort(tmp_path / "private" / "scans.csv")
    assert [case.labels for case in cases] == [{"age": 41}, {"age": 42}]
    assert not [case for case in cases if "doe" in f"{case.id} {case.patient}".lower()]


def test_a_medmnist_file_becomes_a_cohort(tmp_path):
    images, labels = np.zeros((2, 28, 28), np.uint8), np.array([[0], [1]])
    arrays = {f"{s}_{k}": v for s in ("train", "val", "test") for k, v in (("images", images), ("labels", labels))}
    np.savez(tmp_path / "tiny.npz", **arrays)
    result = sample_data(tmp_path / "tiny", medmnist=str(tmp_path / "tiny.npz"))
    assert len(pd.read_csv(result.table)) == 6
    with pytest.raises(ConfigError, match="^seed: applies to the virtual cohort; omit seed or medmnist"):
        sample_data(tmp_path, medmnist="pneumoniamnist", seed=2)


def test_the_demo_starts_with_a_virtual_cohort_and_keeps_it(tmp_path, caplog):
    caplog.set_level("INFO", "monai_diffae")
    for _ in range(2):
        with pytest.raises(MachineError, match="cuda:99"):
            demo(tmp_path, num_patients=20, size=16, minutes=1, device="cuda:99")
    assert len(pd.read_csv(tmp_path / "cohort" / "cohort.csv")) == 20
    assert "these are not patients" in caplog.text
