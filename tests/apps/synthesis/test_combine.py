"""One image of the codes of one or two cases."""

import nibabel as nib
import numpy as np
import pytest

from monai_diffae import combine, edit
from monai_diffae.apps.synthesis.combination import Axes, Combination
from monai_diffae.apps.synthesis.combine import Mixture, Moves
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.errors import CohortError, ConfigError


@pytest.fixture(scope="module")
def ids(labelled):
    return read_embeddings(labelled.embeddings)["id"].tolist()


@pytest.fixture
def made(labelled, ids, tmp_path):
    def make(name="out", **arguments):
        out = combine(labelled.bundle, labelled.cohort, tmp_path / name, case=ids[0], device="cpu", **arguments)
        (file,) = (out.folder / "images").iterdir()
        return canonical(file)

    return make


def canonical(file):
    """The voxels in RAS order: files may store axes in another order, as their affines say."""
    return nib.as_closest_canonical(nib.load(file)).get_fdata()


def test_a_move_along_a_direction_is_an_edit(made, labelled, ids, tmp_path):
    edit(
        labelled.bundle, labelled.cohort, tmp_path / "edited", direction=labelled.direction, strengths=[1.5],
        cases=[ids[0]], device="cpu", batch_size=1,
    )  # fmt: skip
    edited = canonical(tmp_path / "edited" / "images" / f"{ids[0]}_+1.50.nii.gz")
    combined = made(directions={str(labelled.direction): 1.5}, detail="own")
    np.testing.assert_allclose(combined, edited, atol=1)  # of 256 grey values, which are rounded


def test_a_blend_is_an_interpolation(labelled, ids):
    from monai_diffae.apps.session import Session
    from monai_diffae.apps.settings import Choice
    from monai_diffae.inferers.interpolation import lerp, slerp

    session = Session.open(labelled.bundle, labelled.cohort, device="cpu")
    first, second = (session.open_case(case) for case in session.choose(Choice(cases=ids[:2])))
    z_sem, x_T = Combination(blend=ids[1], weight=0.3).codes(
        ids[0], dict(zip(ids, [first, second], strict=False)), Axes({})
    )
    assert (z_sem == lerp(first.z_sem, second.z_sem, [0.3])).all()
    assert (x_T == slerp(first.x_T, second.x_T, [0.3])).all()


def test_without_any_change_the_image_is_the_reconstruction_and_own_detail_the_scan(made, labelled, ids):
    import pandas as pd

    scan = canonical(pd.read_csv(labelled.cohort).set_index("id").loc[ids[0], "image"])
    np.testing.assert_array_equal(made("own", detail="own"), scan)
    assert made("model").shape == scan.shape


def test_the_result_is_recorded_and_skipped_or_refused(made, labelled):
    made(noise_seed=1)
    made(noise_seed=1)
    with pytest.raises(ConfigError, match="was made with other noise_seed"):
        made(noise_seed=2)
    made(noise_seed=2, overwrite=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_seed": 1, "noise_of": "a"}, "noise_seed: noise_of also chooses"),
        ({"weight": 1.5}, "weight: 1.5 is above 1"),
        ({"components": {"1": 1.0}}, "embeddings: the components are computed from them"),
        ({"embeddings": "e.parquet"}, "embeddings: are used for components only"),
        ({"directions": {"no.json": 1.0}}, "no.json: there is no such file"),
        ({"noise_seed": 1, "detail": "own"}, "own is for edits with the case's own x_T"),
        ({"directions": {"no.json": float("nan")}}, "finite"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(made, arguments, message):
    with pytest.raises(ConfigError, match=message):
        made(**arguments)


@pytest.mark.parametrize("name", ["0", "x", "-1", "99", "1.5"])
def test_a_component_that_does_not_exist_is_refused(made, labelled, name):
    with pytest.raises(ConfigError, match="component"):
        made(components={name: 1.0}, embeddings=labelled.embeddings)


def test_a_case_that_does_not_exist_is_refused(made):
    with pytest.raises(CohortError, match="the cohort has no 'nobody'"):
        made(blend="nobody")


def test_files_with_equals_signs_can_be_named_on_the_command_line(labelled, ids, run, tmp_path):
    direction = tmp_path / "a=b.json"
    direction.write_bytes(labelled.direction.read_bytes())
    words = ["combine", labelled.bundle, labelled.cohort, tmp_path / "out", "--case", ids[0], "--device", "cpu"]
    assert run(*words, "--directions", f"{direction}=-1.5")[0] == 0
    code, _, error = run(*words, "--directions", "a.json")
    assert code == 2
    assert "is not of the form name=strength" in error


def test_strength_0_returns_the_codes_to_the_bit(labelled):
    z_sem = np.ones((1, 8), np.float32)
    axes = Axes.read(Moves(directions={str(labelled.direction): 0.0}))
    combination = Combination.of(Mixture(), Moves(directions={str(labelled.direction): 0.0}))
    np.testing.assert_array_equal(axes.moved(z_sem, combination), z_sem)
