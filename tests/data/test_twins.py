"""Twins: scans that occur twice, as they are or changed, are found, reported and kept together."""

import io

import numpy as np
import pytest
from PIL import Image
from scan_files import values

from monai_diffae.data import Case, Scan
from monai_diffae.data.inspection.twins import (
    SIZE,
    TwinGroup,
    find_twins,
    group_twins,
    mark_twins,
    report_twins,
    scan_print,
)
from monai_diffae.data.samples.virtual_cohort import draw_patient, render_patient
from monai_diffae.errors import CohortError


def test_the_same_voxels_have_the_same_digest_whatever_their_order_in_the_file():
    array = values(6, 7, 8)
    scan = Scan(array[None], np.eye(4))
    turned = Scan(array[None, ::-1].swapaxes(2, 3).copy(), np.diag([-1.0, 1, 1, 1])[:, [0, 2, 1, 3]])
    assert scan_print(scan).digest == scan_print(turned).digest
    assert scan_print(scan).thumbnail.shape == (3, SIZE, SIZE)


def saved_again(picture):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=40)
    return Image.open(stream)


CHANGES = {
    "saved again": saved_again,
    "smaller": lambda picture: picture.resize((70, 80), Image.Resampling.BILINEAR),
    "larger": lambda picture: picture.resize((300, 280), Image.Resampling.BICUBIC),
    "brighter": lambda picture: picture.point(lambda value: value * 1.2 + 10),
    "gamma": lambda picture: picture.point(lambda value: 255 * (value / 255) ** 0.8),
}


def twins_of(arrays, patients=None):
    prints = {position: scan_print(Scan(array, np.eye(4))) for position, array in enumerate(arrays)}
    return find_twins(prints, patients or [str(position) for position in prints])


@pytest.mark.parametrize(("spatial_dims", "size", "count"), [(2, 96, 30), (3, 24, 8)])
def test_changed_copies_of_a_head_are_twins_and_deformed_ones_are_not(spatial_dims, size, count):
    patients = [draw_patient(0, number) for number in range(count)]
    arrays = [render_patient(p, size=size, spatial_dims=spatial_dims)[0].squeeze() for p in patients]
    changed = [arrays[0] + np.random.default_rng(0).normal(0, 2.5, arrays[0].shape)]
    if spatial_dims == 2:
        changed += [change(Image.fromarray(arrays[0])) for change in CHANGES.values()]
    groups = twins_of([np.asarray(image, np.float32)[None] for image in (*arrays, *changed)])
    assert groups == [TwinGroup((0, *range(count, count + len(changed))), is_identical=False)]


def test_copies_are_one_group_and_identical_also_within_a_patient():
    scans = list(np.random.default_rng(0).random((5, 1, 40, 40), np.float32))
    groups = [TwinGroup((1, 6), is_identical=True), TwinGroup((3, 5, 7), is_identical=True)]
    assert twins_of([*scans, scans[3], scans[1], scans[3]], ["one patient"] * 8) == groups


def test_pairs_that_are_no_twins():
    scan = np.random.default_rng(0).random((1, 40, 40), np.float32)
    pair, empty = [scan, scan + 1], np.zeros((1, 20, 20), np.float32)
    assert twins_of(pair) == [TwinGroup((0, 1), is_identical=False)]
    assert twins_of(pair, ["a", "a"]) == []  # of one patient
    assert twins_of([empty, empty]) == []
    assert twins_of(pair[:1]) == twins_of([]) == []


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


def test_a_label_named_twins_is_not_replaced_silently():
    with pytest.raises(CohortError, match="column twins of the table has a label, 'monozygotic'"):
        mark_twins([Case("a", {}, "a", labels={"twins": "monozygotic"})], [])


def case(name, patient=None, split=None, **labels):
    return Case(name, {}, patient or name, split, labels)


def test_only_twins_of_other_patients_splits_or_labels_are_problems():
    group = [TwinGroup((0, 1), is_identical=True)]
    report = report_twins([case("a", "p", "train"), case("b", "p", "train")], group)
    assert [*report.problems()] == []
    assert report.groups == [["a", "b"]]
    assert [line.partition(":")[0] for line in report.lines()] == ["twins"]
    assert [*report_twins([case("a", split="train", ill=0), case("b", ill=None)], group).problems()] == []
    assert [*report_twins([case("a"), case("b")], []).lines()] == []
    cases = [case(str(i), age=i, ill=i % 2) for i in range(30)]  # measurements with many values may differ
    assert [pair.what for pair in report_twins(cases, [TwinGroup((3, 4), is_identical=False)]).contradictory] == ["ill"]
