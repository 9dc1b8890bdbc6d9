"""What labels say about images: classes, and the volumes of structures in real label maps."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

from label_scans import fill, shared
from PIL import Image

from monai_diffae.data.scans import write_scan
from monai_diffae.errors import ConfigError
from monai_diffae.label.datastore import FolderDatastore
from monai_diffae.label.label_targets import label_targets, structure_sizes


@pytest.fixture
def labelled(tmp_path, volumes):
    """A datastore with three hippocampi and the label maps of two of them."""
    names = list(volumes)[:3]
    datastore = FolderDatastore(str(fill(tmp_path / "studies", {name: volumes[name] for name in names}).folder))
    structures = [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]
    for name in names[:2]:
        label = next(file for file in shared("hippocampus_msd/labels", "*.nii.gz") if file.name == f"{name}.nii.gz")
        datastore.save_label(name, str(label), "final", {"label_info": structures})
    return datastore, names


def test_volumes_are_those_of_the_label_map(labelled):
    datastore, names = labelled
    kind, whole = label_targets(datastore, names[:2])
    assert kind == "volume"
    assert list(whole) == names[:2]
    _, anterior = label_targets(datastore, names[:2], "anterior")
    _, posterior = label_targets(datastore, names[:2], "2")
    for name in names[:2]:
        sizes = structure_sizes(next(f for f in shared("hippocampus_msd/labels", f"{name}.nii.gz")))
        assert (anterior[name], posterior[name]) == (sizes[1], sizes[2])
        assert whole[name] == pytest.approx(anterior[name] + posterior[name])
        assert 0.1 < anterior[name] < 5  # ml


def test_a_class_comes_first_and_images_without_one_are_left_out(labelled):
    datastore, names = labelled
    datastore.update_label_info(names[0], "final", {"class": "left"})
    assert label_targets(datastore, names[:2]) == ("class", {names[0]: "left"})
    assert label_targets(datastore, names[:2], "volume")[0] == "volume"
    assert label_targets(datastore, [], "class") == ("class", {})


def test_an_unknown_structure_is_refused(labelled):
    datastore, names = labelled
    for name in ("liver", "²"):  # a digit that is no number
        with pytest.raises(ConfigError, match=f"no label has a structure '{name}'"):
            label_targets(datastore, names[:2], name)


def test_a_damaged_label_is_left_out(labelled, tmp_path):
    datastore, names = labelled
    Path(datastore.get_label_uri(names[1], "final")).write_bytes(b"no label")
    assert list(label_targets(datastore, names[:2])[1]) == names[:1]


def test_sizes_have_units(tmp_path):
    array = np.zeros((1, 10, 10, 10))
    array[0, :2, :5, :1] = 1
    array[0, 5, 5, 5] = 3
    volume = write_scan(tmp_path / "volume.nii.gz", array, np.diag([2.0, 1.0, 5.0, 1.0]), dtype=np.uint8)
    assert structure_sizes(volume) == {1: pytest.approx(0.1), 3: pytest.approx(0.01)}  # ml
    picture = np.zeros((20, 20), np.uint8)
    picture[:10] = 7
    Image.fromarray(picture).save(tmp_path / "picture.png")
    assert structure_sizes(tmp_path / "picture.png") == {7: pytest.approx(2.0)}  # cm2 for pixels of 1 mm
    opaque = np.full_like(picture, 255)
    Image.fromarray(np.stack([picture, picture, picture, opaque], axis=-1)).save(tmp_path / "opaque.png")
    assert structure_sizes(tmp_path / "opaque.png") == {1: pytest.approx(2.0)}
    array[0, 5, 5, 5] = np.nan
    with_nan = write_scan(tmp_path / "nan.nii.gz", array, np.diag([2.0, 1.0, 5.0, 1.0]))
    assert structure_sizes(with_nan) == {1: pytest.approx(0.1)}
    Image.fromarray(np.stack([picture] * 3, axis=-1)).save(tmp_path / "colour.png")
    assert structure_sizes(tmp_path / "colour.png") == {1: pytest.approx(2.0)}


def test_an_empty_label_map_has_no_structure(tmp_path):
    path = write_scan(tmp_path / "empty.nii.gz", np.zeros((1, 4, 4, 4)), np.eye(4), dtype=np.uint8)
    assert structure_sizes(path) == {}
