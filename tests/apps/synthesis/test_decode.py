"""The command ``decode``."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from monai_diffae import Choice, decode, edit, load_bundle, reconstruct
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Run
from monai_diffae.apps.synthesis.decode import Axes, Combination
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import ConfigError
from monai_diffae.inferers.paths import lerp, slerp
from monai_diffae.latents import principal_components

CPU = {"device": "cpu"}
QUICK = {"show": "components", "components": [1, 2], "strengths": (-60, 0, 60), **CPU}
NAMES = [f"{component}_{strength}" for component in ("001", "002") for strength in ("+0.00", "+60.00", "-60.00")]


def images(folder):
    """The images by name, in RAS order: files may store axes in another order, as their affines say."""
    files = sorted((folder / "images").iterdir())
    return {file.name.removesuffix(".nii.gz"): nib.as_closest_canonical(nib.load(file)).get_fdata() for file in files}


@pytest.fixture(scope="module")
def ids(labelled):
    return pd.read_csv(labelled.cohort)["id"].tolist()


@pytest.fixture(scope="module")
def of_case(labelled, ids):
    """Calls the command for the first case."""
    return lambda out, **more: decode(labelled.bundle, out, cohort=labelled.cohort, case=ids[0], **CPU | more).folder


@pytest.fixture(scope="module")
def plain(labelled, tmp_path_factory):
    """The plain reconstructions of the first two cases."""
    out = tmp_path_factory.mktemp("plain")
    reconstruct(labelled.bundle, labelled.cohort, out, limit=2, grid="model", **CPU)
    return [nib.as_closest_canonical(nib.load(file)).get_fdata() for file in sorted((out / "x_T").glob("*.nii.gz"))]


def test_a_path_goes_from_the_reconstruction_of_one_case_to_that_of_the_other(of_case, plain, ids, tmp_path):
    made = images(of_case(tmp_path, show="path", blend=ids[1], num_images=5))
    assert list(made) == ["0.000", "0.250", "0.500", "0.750", "1.000"]
    np.testing.assert_allclose(made["0.000"], plain[0], atol=1e-4)
    np.testing.assert_allclose(made["1.000"], plain[1], atol=1e-4)
    distances = [np.square(image - plain[1]).mean() for image in made.values()]
    assert distances[0] > distances[2] > distances[4]
    picture = np.asarray(Image.open(tmp_path / "path.png").convert("L"))
    assert min(half.std() for half in np.array_split(picture, 2)) > 10


def test_a_move_along_a_direction_is_an_edit(of_case, labelled, ids, tmp_path):
    edit(
        labelled.bundle, labelled.cohort, tmp_path / "edited", direction=labelled.direction, strengths=[1.5],
        cases=ids[:1], **CPU,
    )  # fmt: skip
    edited = images(tmp_path / "edited")[f"{ids[0]}_+1.50"]
    moved = images(of_case(tmp_path / "moved", moves={str(labelled.direction): 1.5}, detail="own"))[ids[0]]
    np.testing.assert_allclose(moved, edited, atol=1)  # whole grey values, also beyond those of uint8
    assert edited.min() < 0


def test_codes_are_blended_moved_and_exchanged(labelled, ids):
    session = Session.open(labelled.bundle, labelled.cohort, run=Run(**CPU))
    first, second = (session.trained.open(case) for case in session.choose(Choice(cases=ids[:2])))
    opened, name = {ids[0]: first, ids[1]: second}, str(labelled.direction)
    axes = Axes.read([name, "2"], labelled.embeddings, session.trained)
    moved = torch.from_numpy(axes.components.traverse(first.z_sem.numpy(), 1, [1]))
    blended = lerp(first.z_sem, second.z_sem, [0.3]), slerp(first.x_T, second.x_T, [0.3])
    for options, expected in (
        ({"blend": ids[1], "weight": 0.3}, blended),
        ({"moves": {name: 0, "2": 0}, "noise_of": ids[1]}, (first.z_sem, second.x_T)),
        ({"moves": {"2": 1}, "noise_seed": 3}, (moved, image_noise((1, 16, 16), 0, [3]))),
    ):
        assert all(map(torch.equal, Combination(**options).codes(ids[0], opened, axes, session.trained), expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"moves": {"1": 1}}, "embeddings: principal components are computed from the table"),
        ({"embeddings": "e.parquet"}, "embeddings: principal components are computed from the table"),
        ({"moves": {"0": 1}, "embeddings": "e.parquet"}, "moves: components are counted from 1"),
        ({"weight": 0.9}, "weight: is only used with blend"),
        ({"show": "components", "moves": {"2": 1}}, "moves: component 2 is shown at all strengths"),
        ({"noise_seed": 1, "detail": "own"}, "own is for edits with the case's own x_T"),
        ({"show": "path"}, "blend: is required"),
        ({"case": None}, "case: give the case together with the cohort"),
        ({"show": "components", "num_noises": 3}, "num_noises: is not used to show components; omit it"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message, labelled, tmp_path):
    with pytest.raises(ConfigError, match=message):
        decode(labelled.bundle, tmp_path, **{"cohort": labelled.cohort, "case": "a", **arguments})


def test_without_a_case_an_image_is_the_mean_over_the_noises_from_the_mean_of_the_training_cases(labelled, tmp_path):
    decode(labelled.bundle, tmp_path, embeddings=labelled.embeddings, num_noises=2, **QUICK)
    assert sorted(file.stem for file in (tmp_path / "images").iterdir()) == NAMES
    table = read_embeddings(labelled.embeddings)
    z_train = z_matrix(table[table["split"] == "train"])
    moved = torch.from_numpy(principal_components(z_train).traverse(z_train.mean(axis=0), 1, [60])).expand(2, -1)
    trained = load_bundle(labelled.bundle, "cpu")
    image = trained.inferer.decode(moved, trained.network, image_noise((1, 16, 16), 0, [0, 1])).mean(dim=0)[0]
    made = np.asarray(Image.open(tmp_path / "images" / "002_+60.00.png")) / 127.5 - 1
    np.testing.assert_allclose(made, image.clamp(-1, 1), atol=0.01)


def test_from_a_case_strength_0_is_its_reconstruction(of_case, labelled, plain, tmp_path):
    made = images(of_case(tmp_path, embeddings=labelled.embeddings, **QUICK))
    assert list(made) == NAMES
    np.testing.assert_allclose(made["002_+0.00"], plain[0], atol=1e-4)
    assert np.abs(made["002_+60.00"] - plain[0]).max() > 1e-3


@pytest.fixture(scope="module")
def six(of_case, tmp_path_factory):
    return of_case(tmp_path_factory.mktemp("six"), show="variations", num_images=6)


def test_variations_differ_and_their_mean_and_std_are_written(six):
    made = np.stack(list(images(six).values()))
    assert made.shape == (6, 16, 16, 1)
    assert np.abs(np.diff(made, axis=0)).mean(axis=(1, 2, 3)).min() > 0.01
    mean, std = (nib.as_closest_canonical(nib.load(six / f"{name}.nii.gz")).get_fdata() for name in ("mean", "std"))
    np.testing.assert_allclose(mean, made.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(std, made.std(axis=0, ddof=1), atol=1e-5)
    assert np.asarray(Image.open(six / "variations.png")).std() > 10


def test_a_variation_is_a_function_of_its_seed_to_the_bit(six, of_case, tmp_path):
    made = images(of_case(tmp_path, show="variations", num_images=2, noise_seed=4))
    assert list(made) == ["004", "005"]
    for name, image in made.items():
        np.testing.assert_array_equal(image, images(six)[name])
