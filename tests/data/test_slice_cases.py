from pathlib import Path

import numpy as np
import pytest

from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure
from monai_diffae.data.scans import write_scan
from monai_diffae.data.slice_cases import expand_slices, gather_slices
from monai_diffae.errors import CohortError


def slices(name, *indices):
    image = {"image": Path(f"{name}.nii")}
    return [Case(f"{name}_z{k:03d}", image, name, slice_index=k) for k in indices]


def test_slices_are_gathered_by_volume_in_their_order():
    picture = Case("a_z001", {"image": Path("a.png")}, "p")
    volumes, failures = gather_slices([*slices("b_1", 2, 4), picture, *slices("b", 3)], [])
    assert {name: [case.id for case in cases] for name, cases in volumes.items()} == {
        "b_1": ["b_1_z002", "b_1_z004"],
        "a_z001": ["a_z001"],
        "b": ["b_z003"],
    }
    assert list(volumes) == ["b_1", "a_z001", "b"]
    assert failures == []


def test_a_volume_fails_as_a_whole_and_once():
    bad_header = Failure("c", "c.nii", "c.nii: no scan")
    bad_slices = [Failure(f"a_z{k:03d}", "a.nii", f"reason {k}") for k in (4, 6)]
    volumes, failures = gather_slices([*slices("a", 2, 4, 6), *slices("b", 2)], [bad_header, *bad_slices])
    assert list(volumes) == ["b"]
    assert failures == [bad_header, Failure("a", "a.nii", "slice 4: reason 4")]


@pytest.mark.goal(id="R13")
def test_a_slice_may_not_have_the_id_of_another_case(tmp_path):
    volume = write_scan(tmp_path / "a.nii.gz", np.zeros((1, 2, 2, 3)))
    picture = write_scan(tmp_path / "a_z001.png", np.zeros((1, 4, 4)))
    cases = [Case("a", {"image": volume}, "a"), Case("a_z001", {"image": picture}, "p")]
    with pytest.raises(CohortError, match="the id 'a_z001' is that of a scan and of a slice of another scan"):
        expand_slices(cases)
