"""The commands ``interpolate`` and ``combine``: images of the codes of two cases."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae import combine, edit
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Choice
from monai_diffae.apps.synthesis.combination import Axes, Combination
from monai_diffae.apps.synthesis.combine import Mixture, Moves
from monai_diffae.apps.synthesis.interpolate import interpolate
from monai_diffae.apps.synthesis.reconstruct import reconstruct
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.inferers.interpolation import lerp, slerp


def image(folder, name):
    return nib.load(folder / "images" / f"{name}.nii.gz").get_fdata()


@pytest.fixture(scope="module")
def ends(tiny_bundle):
    return dict(zip(("start", "end"), pd.read_csv(tiny_bundle.cohort)["id"][:2], strict=True))


@pytest.fixture(scope="module")
def strip(tiny_bundle, ends, tmp_path_factory):
    out = tmp_path_factory.mktemp("strip")
    return interpolate(tiny_bundle.directory, tiny_bundle.cohort, out, **ends, num_images=5, device="cpu").folder


def test_the_ends_are_the_plain_reconstructions_and_between_them_is_something_else(strip, tiny_bundle, ends, tmp_path):
    plain = (
        reconstruct(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, limit=2, device="cpu", grid="model").folder
        / "x_T"
    )
    first, second = (nib.load(plain / f"{name}.nii.gz").get_fdata() for name in ends.values())
    np.testing.assert_allclose(image(strip, "0.000"), first, atol=1e-4)
    np.testing.assert_allclose(image(strip, "1.000"), second, atol=1e-4)
    names = [file.name.removesuffix(".nii.gz") for file in sorted((strip / "images").iterdir())]
    assert names == ["0.000", "0.250", "0.500", "0.750", "1.000"]
    # it goes from one to the other
    nearer = [np.square(image(strip, name) - second).mean() for name in names]
    assert nearer[0] > nearer[2] > nearer[4]
    with Image.open(strip / "interpolation.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert min(half.std() for half in np.array_split(pixels, 2)) > 10
    assert np.abs(image(strip, "0.500") - (first + second) / 2).max() > 1e-3  # no pixels blended


def test_a_case_that_cannot_be_read_is_named_and_no_other(tiny_bundle, ends, tmp_path):
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / file) for file in table["image"]]
    values = np.full((16, 16, 1), np.nan, np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "nan.nii")
    (tmp_path / "other.nii").write_bytes(b"no scan, of a case that is not asked for")
    table.loc[[1, 5], "image"] = [str(tmp_path / "nan.nii"), str(tmp_path / "other.nii")]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    options = {**ends, "device": "cpu"}
    with pytest.raises(CohortError, match=f"^{ends['end']}: ") as caught:
        interpolate(tiny_bundle.directory, tmp_path / "cohort.csv", tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(ConfigError, match=f"end: '{ends['end']}' is also the start"):
        interpolate(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, **{**options, "start": ends["end"]})


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
    # whole grey values; a volume keeps its type uint8, a slice may get a larger one
    np.testing.assert_allclose(combined, edited.clip(0, 255), atol=1)
    z_sem, axes = np.ones((1, 8), np.float32), Axes.read(Moves(directions={str(labelled.direction): 0.0}))
    unmoved = Combination.of(Mixture(), Moves(directions={str(labelled.direction): 0.0}))
    np.testing.assert_array_equal(axes.moved(z_sem, unmoved), z_sem)


def test_a_blend_is_an_interpolation(labelled, ids):
    session = Session.open(labelled.bundle, labelled.cohort, device="cpu")
    first, second = (session.open_case(case) for case in session.choose(Choice(cases=ids[:2])))
    opened = dict(zip(ids, [first, second], strict=False))
    z_sem, x_T = Combination(blend=ids[1], weight=0.3).codes(ids[0], opened, Axes({}))
    assert (z_sem == lerp(first.z_sem, second.z_sem, [0.3])).all()
    assert (x_T == slerp(first.x_T, second.x_T, [0.3])).all()


def test_without_any_change_own_detail_is_the_scan(made, labelled, ids):
    scan = canonical(pd.read_csv(labelled.cohort).set_index("id").loc[ids[0], "image"])
    np.testing.assert_array_equal(made("own", detail="own"), scan)


def test_arguments_that_do_not_fit_are_refused(made, labelled):
    components = {"embeddings": labelled.embeddings, "components": {"99": 1.0}}
    for arguments, message in (
        ({"noise_seed": 1, "noise_of": "a"}, "noise_seed: noise_of also chooses"),
        ({"components": {"1": 1.0}}, "embeddings: the components are computed from them"),
        (components, "component"),
        ({"noise_seed": 1, "detail": "own"}, "own is for edits with the case's own x_T"),
        ({"directions": {"no.json": float("nan")}}, "finite"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(**arguments)
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
