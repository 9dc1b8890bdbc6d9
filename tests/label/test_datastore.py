"""The datastore of a folder: what it lists, and that no id or tag leads out of it."""

import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from label_scans import fill, some
from monailabel.interfaces.exception import MONAILabelException

from monai_diffae.data.scans import read_scan, write_scan
from monai_diffae.errors import ConfigError
from monai_diffae.label.datastore import FolderDatastore
from monai_diffae.serving.answers import ConflictError, NotFoundError


@pytest.fixture
def studies(tmp_path, volumes, pictures):
    more = {"1.2.840": volumes["series-1"]}  # a folder's name may look as if it had a suffix
    return fill(tmp_path / "studies", {**some(volumes, 2), **more, "picture": next(iter(pictures.values()))})


@pytest.fixture
def label(volumes):
    return str(next(iter(volumes.values())))


@pytest.fixture
def save(tmp_path_factory):
    """Saves an empty mask as the label of an image, and returns its file."""
    folder = tmp_path_factory.mktemp("masks")

    def call(datastore, id, tag="final", info=None, suffix=".nii.gz"):
        shape = read_scan(datastore.get_image_uri(id)).array.shape[1:]
        file = write_scan(folder / f"{id}{suffix}", np.zeros((1, *shape, 1)[:4], np.uint8))
        assert datastore.save_label(id, str(file), tag, info or {}) == id
        return file

    return call


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_volumes_pictures_and_dicom_series_are_listed_and_other_files_are_not(studies, pictures):
    shutil.copy(next(iter(pictures.values())), studies.folder / "A.JPEG")
    (studies.folder / "notes.txt").write_text("no image")
    (studies.folder / "empty_folder").mkdir()
    datastore = FolderDatastore(str(studies.folder))
    assert datastore.list_images() == sorted([*studies.source, "A"])
    for id in studies.source:
        uri = datastore.get_image_uri(id)
        assert os.path.dirname(uri) == str(studies.folder)
        assert os.path.basename(uri).startswith(id)
        assert datastore.get_image_info(id)["path"] == uri
    assert datastore.status()["total"] == len(studies.source) + 1


def test_files_with_the_same_name_are_counted(tmp_path, volumes, pictures, caplog):
    shutil.copy(next(iter(volumes.values())), tmp_path / "doe.nii.gz")
    shutil.copy(next(iter(pictures.values())), tmp_path / "doe.jpeg")
    with caplog.at_level(logging.WARNING, "monai_diffae"):
        assert FolderDatastore(str(tmp_path)).list_images() == ["doe"]
    assert "1 scan with the id of another scan" in caplog.text


def test_ids_and_tags_do_not_lead_out_of_the_folder(studies, label, save, tmp_path):
    (tmp_path / "secret.nii.gz").write_text("not a study")
    datastore = FolderDatastore(str(studies.folder))
    before = files_below(tmp_path)
    calls = {
        "get_image_uri": (), "get_image": (), "get_image_info": (), "update_image_info": ({"a": 1},),
        "remove_image": (), "save_label": (label, "final", {}), "get_label_uri": ("final",),
        "update_label_info": ("final", {"a": 1}), "remove_label": ("final",),
    }  # fmt: skip
    for id in ("", "../secret", "/etc/passwd", "unknown", None):
        for name, arguments in calls.items():
            with pytest.raises((NotFoundError, MONAILabelException)):
                getattr(datastore, name)(id, *arguments)
    for tag in ("", "../../outside", "/tmp/outside", "..", ".x", " a", "x" * 65):
        with pytest.raises(ConfigError, match=r"^tag: "):
            save(datastore, "picture", tag)
    for id in ("../outside", "/tmp/outside", "a/b", "a\\b", ".hidden"):
        with pytest.raises(ConfigError, match=r"^image: "):
            datastore.add_image(id, label, {})
    assert files_below(tmp_path) == before


def test_infos_that_json_cannot_hold_are_not_stored(studies, save):
    datastore = FolderDatastore(str(studies.folder))
    save(datastore, "picture")
    for info in ({"dice": float("nan")}, [1], {"x": "\ud800"}, {"strategy": [1]}, {"strategy": {"m": {"ts": "soon"}}}):
        for call in (
            lambda info=info: save(datastore, "picture", info=info),
            lambda info=info: datastore.update_image_info("picture", info),
            lambda info=info: datastore.update_label_info("picture", "final", info),
        ):
            with pytest.raises(ConfigError, match=r"^params: must be a JSON object of valid text"):
                call()
    assert "NaN" not in (studies.folder / "datastore_v2.json").read_text()


def test_an_image_is_added_but_does_not_replace_another(studies, volumes, tmp_path):
    datastore = FolderDatastore(str(studies.folder))
    first, second = list(volumes.values())[2:4]
    assert datastore.add_image("new", str(first), {}) == "new"
    assert datastore.add_image("new", str(first), {}) == "new"  # a client that sends it again
    with pytest.raises(ConflictError, match="another image has this id"):
        datastore.add_image("new", str(second), {})
    assert Path(datastore.get_image_uri("new")).read_bytes() == first.read_bytes()
    text = tmp_path / "a.txt"
    text.write_text("no image")
    with pytest.raises(ConfigError, match="has an unknown suffix; use one of"):
        datastore.add_image("text", str(text), {})


def test_labels_are_saved_read_and_removed(studies, label):
    datastore = FolderDatastore(str(studies.folder))
    name, source = next((id, path) for id, path in studies.source.items() if path.suffix == ".gz")
    assert datastore.save_label(name, label, "final", {"class": "left"}) == name
    datastore.update_image_info(name, {"site": "A"})
    assert datastore.add_image(name, str(source), {}) == name  # an image that is sent again keeps its labels
    assert datastore.get_labeled_images() == [name]
    assert name not in datastore.get_unlabeled_images()
    for store in (datastore, FolderDatastore(str(studies.folder))):  # another process
        assert store.get_label_info(name, "final")["class"] == "left"
        assert store.get_image_info(name)["site"] == "A"
        assert Path(store.get_label_uri(name, "final")).read_bytes() == Path(label).read_bytes()
    datastore.remove_label(name, "final")
    assert datastore.get_labeled_images() == []


def test_a_file_that_is_no_mask_of_the_image_does_not_replace_a_label(studies, label, save, tmp_path):
    datastore = FolderDatastore(str(studies.folder))
    saved = save(datastore, "series-1")
    shape = read_scan(datastore.get_image_uri("series-1")).array.shape
    others = np.zeros((*shape[:3], shape[3] + 1)), np.full(shape, 0.5)
    for array in others:
        with pytest.raises(ConfigError):
            datastore.save_label("series-1", str(write_scan(tmp_path / "e.nii.gz", array)), "final", {})
    header = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: "
    other = header + label.encode() + b"\n\n"
    for name, content in {"a.nii.gz": b"", "b.nii.gz": b"garbage", "c.exe": b"garbage", "d.nrrd": other}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="label: cannot be read as an image"):
            datastore.save_label("series-1", str(tmp_path / name), "final", {})
    assert Path(datastore.get_label_uri("series-1", "final")).read_bytes() == saved.read_bytes()


def test_a_label_with_another_suffix_replaces_the_label(studies, save):
    datastore = FolderDatastore(str(studies.folder))
    save(datastore, "series-1")
    save(datastore, "picture")
    other = save(datastore, "series-1", suffix=".nrrd")
    for store in (datastore, FolderDatastore(str(studies.folder))):
        assert Path(store.get_label_uri("series-1", "final")).read_bytes() == other.read_bytes()
    datastore.remove_label("series-1", "final")
    assert FolderDatastore(str(studies.folder)).get_labeled_images() == ["picture"]


def test_a_job_does_not_write_the_list(studies, label):
    server = FolderDatastore(str(studies.folder))
    file = studies.folder / "datastore_v2.json"
    before = file.read_bytes()
    shutil.copy(label, studies.folder / "later.nii.gz")
    job = FolderDatastore(str(studies.folder), read_only=True)
    assert file.read_bytes() == before
    assert job.list_images() == server.list_images()
    server.refresh()
    assert "later" in server.list_images()
    assert "later" in json.loads(file.read_text())["objects"]


def test_many_threads_at_once_lose_no_label(studies, save):
    datastore = FolderDatastore(str(studies.folder))

    def work(id):
        for i in range(5):
            datastore.refresh()
            save(datastore, id, f"reader-{i}")
            datastore.status()

    with ThreadPoolExecutor(len(studies.source)) as threads:
        list(threads.map(work, studies.source))
    for id in studies.source:
        assert set(datastore.get_labels_by_image_id(id)) == {f"reader-{i}" for i in range(5)}


@pytest.fixture
def nested(tmp_path, volumes, pictures):
    """A DICOM series and a picture in subfolders, and two series in one folder."""
    folder, series = tmp_path / "nested", volumes["series-1"]
    shutil.copytree(series, folder / "brain" / "11-T1", ignore=shutil.ignore_patterns("*.txt"))
    (folder / "normal").mkdir()
    shutil.copy(next(iter(pictures.values())), folder / "normal" / "a.jpeg")
    for source in (series, series.parent / "Study2_14_HCropVolume"):
        for file in source.glob("*.dcm"):
            (folder / "two").mkdir(exist_ok=True)
            shutil.copy(file, folder / "two" / f"{source.name}-{file.name}")
    return folder


def test_scans_in_subfolders_and_several_series_of_a_folder_are_served(nested, save):
    datastore = FolderDatastore(str(nested))
    images = datastore.list_images()
    first, second = (id for id in images if id.startswith("two_"))
    assert images == sorted(["brain_11-T1", "normal_a", first, second])
    shapes = {id: read_scan(datastore.get_image_uri(id)).array.shape for id in images}
    assert shapes["brain_11-T1"] in (shapes[first], shapes[second])
    assert shapes[first] != shapes[second]
    assert datastore.get_image_info("normal_a")["name"] == "a.jpeg"
    for id in images:
        save(datastore, id)
        assert Path(datastore.get_label_uri(id, "final")) == nested / "labels" / "final" / f"{id}.nii.gz"
    job = FolderDatastore(str(nested), read_only=True)
    again = FolderDatastore(str(nested))
    for other in (job, again):
        assert other.list_images() == other.get_labeled_images() == images
        assert [other.get_image_uri(id) for id in images] == [datastore.get_image_uri(id) for id in images]


def test_a_series_is_deleted_only_with_a_folder_of_its_own(nested, tmp_path, volumes):
    datastore = FolderDatastore(str(nested))
    shared = datastore.list_images()[-1]
    before = files_below(nested / "two")
    with pytest.raises(ConfigError, match="its folder holds more than this series"):
        datastore.remove_image(shared)
    assert files_below(nested / "two") == before
    datastore.remove_image("brain_11-T1")
    assert not (nested / "brain" / "11-T1").exists()
    shutil.rmtree(nested / "two")
    (nested / "two").mkdir()
    datastore.refresh()
    assert datastore.list_images() == ["normal_a"]
    datastore = FolderDatastore(str(fill(tmp_path, {"one": volumes["series-1"]}).folder / "one"))
    assert datastore.list_images() == ["one"]  # a folder that is a series itself
    assert read_scan(datastore.get_image_uri("one")).array.ndim == 4
    with pytest.raises(ConfigError, match="delete its files by hand"):
        datastore.remove_image("one")
