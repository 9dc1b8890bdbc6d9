import numpy as np
import pytest
from PIL import Image

from monai_diffae.data.cases import Case
from monai_diffae.data.listing import find_listed_twins, group_twins, mark_twins
from monai_diffae.data.twins import TwinGroup
from monai_diffae.errors import CohortError


def test_the_same_pixels_in_two_formats_are_identical(tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 60, 50), np.uint8)
    for name, image in (("a.png", pixels[0]), ("b.png", pixels[1]), ("d.png", pixels[2])):
        Image.fromarray(image).save(tmp_path / name)
    Image.fromarray(pixels[1]).convert("RGB").save(tmp_path / "c.png")
    (tmp_path / "e.png").write_bytes(b"...")
    cases = [Case(name, {"image": tmp_path / f"{name}.png"}, name) for name in "abecd"]
    assert find_listed_twins(cases) == [TwinGroup((1, 3), is_identical=True)]
    assert "1 scans cannot be read" in caplog.text


def test_twins_that_share_scans_become_one_patient():
    cases = [Case(str(i), {}, patient) for i, patient in enumerate("pqrstp")]
    groups = [TwinGroup((1, 2), is_identical=True), TwinGroup((2, 5), is_identical=False)]
    patients = [case.patient for case in group_twins(cases, groups)]
    assert len({patients[i] for i in (0, 1, 2, 5)}) == 1
    assert patients[3:5] == ["s", "t"]


def test_twins_in_two_splits_cannot_be_one_patient():
    cases = [Case("a", {}, "p", "train"), Case("b", {}, "q", "test")]
    with pytest.raises(CohortError, match=r"a \(split train\) and b \(split test\), so they cannot become one patient"):
        group_twins(cases, [TwinGroup((0, 1), is_identical=True)])


def test_marks_of_an_earlier_listing_are_replaced():
    cases = mark_twins([Case(name, {}, name) for name in "abc"], [TwinGroup((0, 1), is_identical=True)])
    again = mark_twins(cases, [TwinGroup((1, 2), is_identical=True)])
    assert [case.labels["twins"] for case in again] == [None, "group 1", "group 1"]
    assert [case.labels for case in mark_twins(again, [])] == [{}, {}, {}]


def test_a_label_named_twins_is_not_replaced_silently():
    with pytest.raises(CohortError, match="column twins of the table has a label, 'monozygotic'"):
        mark_twins([Case("a", {}, "a", labels={"twins": "monozygotic"})], [])
