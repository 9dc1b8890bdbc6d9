"""The commands ``interpolate``, ``combine``, ``traverse`` and ``vary``."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from monai_diffae import Choice, combine, edit, interpolate, load_bundle, reconstruct, traverse, vary
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Run
from monai_diffae.apps.synthesis.combine import Axes, Combination, Moves
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import ConfigError
from monai_diffae.inferers.paths import lerp, slerp
from monai_diffae.latents import LatentStatistics, principal_components


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


@pytest.fixture(scope="module")
def all_ids(labelled):
    return read_embeddings(labelled.embeddings)["id"].tolist()


@pytest.fixture
def made(labelled, all_ids, tmp_path):
    def make(name="out", **arguments):
        out = combine(labelled.bundle, labelled.cohort, tmp_path / name, case=all_ids[0], device="cpu", **arguments)
        (file,) = (out.folder / "images").iterdir()
        return canonical(file)

    return make


def canonical(file):
    """The voxels in RAS order: files may store axes in another order, as their affines say."""
    return nib.as_closest_canonical(nib.load(file)).get_fdata()


def test_a_move_along_a_direction_is_an_edit(made, labelled, all_ids, tmp_path):
    edit(
        labelled.bundle, labelled.cohort, tmp_path / "edited", direction=labelled.direction, strengths=[1.5],
        cases=[all_ids[0]], device="cpu", batch_size=1,
    )  # fmt: skip
    edited = canonical(tmp_path / "edited" / "images" / f"{all_ids[0]}_+1.50.nii.gz")
    combined = made(directions={str(labelled.direction): 1.5}, detail="own")
    np.testing.assert_allclose(combined, edited, atol=1)  # whole grey values, also beyond those of uint8
    assert edited.min() < 0
    z_sem, moves = np.ones((1, 8), np.float32), Moves(directions={str(labelled.direction): 0.0})
    unmoved = Combination(directions=moves.directions)
    axes, _ = Axes.read(moves, load_bundle(labelled.bundle, "cpu"))
    np.testing.assert_array_equal(axes.move(z_sem, unmoved), z_sem)


def test_a_blend_is_an_interpolation(labelled, all_ids):
    session = Session.open(labelled.bundle, labelled.cohort, run=Run(device="cpu"))
    first, second = (session.open_case(case) for case in session.choose(Choice(cases=all_ids[:2])))
    opened = dict(zip(all_ids, [first, second], strict=False))
    z_sem, x_T = Combination(blend=all_ids[1], weight=0.3).codes(all_ids[0], opened, Axes({}))
    assert (z_sem == lerp(first.z_sem, second.z_sem, [0.3])).all()
    assert (x_T == slerp(first.x_T, second.x_T, [0.3])).all()


def test_arguments_that_do_not_fit_are_refused(made, labelled):
    for arguments, message in (
        ({"components": {"1": 1.0}}, "embeddings: the components are computed from them"),
        ({"components": {"99": 1.0}, "embeddings": labelled.embeddings}, "component"),
        ({"noise_seed": 1, "detail": "own"}, "own is for edits with the case's own x_T"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(**arguments)


QUICK = {"num_components": 2, "strengths": (-60, 0, 60), "num_noises": 2, "device": "cpu"}
NAMES = [f"{component}_{strength}" for component in ("001", "002") for strength in ("+0.00", "+60.00", "-60.00")]


@pytest.fixture(scope="module")
def traversed(labelled, tmp_path_factory):
    return traverse(labelled.bundle, labelled.embeddings, tmp_path_factory.mktemp("traversed"), **QUICK)


def pixels(folder, name):
    return np.asarray(Image.open(folder / "images" / f"{name}.png"), float)


def test_each_image_is_the_mean_over_the_noises_from_the_mean_of_the_training_cases(traversed, labelled):
    assert sorted(file.stem for file in (traversed.folder / "images").iterdir()) == NAMES
    table = read_embeddings(labelled.embeddings)
    z_train = z_matrix(table[table["split"] == "train"])
    components = principal_components(z_train, LatentStatistics.of(z_train), 2)
    trained, x_T = load_bundle(labelled.bundle, "cpu"), image_noise((1, 16, 16), 0, [0, 1])
    for k in (0, 1):
        moved = torch.from_numpy(components.traverse(z_train.mean(axis=0), k, QUICK["strengths"]))
        for strength, z_sem in zip(QUICK["strengths"], moved, strict=True):
            image = trained.inferer.decode(z_sem.expand(2, -1), trained.network, x_T).mean(dim=0)[0]
            expected = ((image + 1) / 2 * 255).clamp(0, 255).T.numpy()  # PNG shows the first axis from left to right
            made = pixels(traversed.folder, f"{k + 1:03d}_{strength:+.2f}")
            assert min(np.abs(made - expected).max(), np.abs(made - expected.T).max()) < 1.01


def test_from_a_case_strength_0_is_its_reconstruction(labelled, tmp_path):
    case = pd.read_csv(labelled.cohort)["id"][0]
    options = {**QUICK, "cohort": labelled.cohort, "case": case}
    out = traverse(labelled.bundle, labelled.embeddings, tmp_path / "w", **options).folder
    plain = reconstruct(labelled.bundle, labelled.cohort, tmp_path / "r", limit=1, device="cpu", grid="model").folder
    expected = nib.load(plain / "x_T" / f"{case}.nii.gz").get_fdata()
    assert sorted(file.name.removesuffix(".nii.gz") for file in (out / "images").iterdir()) == NAMES
    for component in ("001", "002"):
        made = nib.load(out / "images" / f"{component}_+0.00.nii.gz").get_fdata()
        np.testing.assert_allclose(made, expected, atol=1e-4)
        moved = nib.load(out / "images" / f"{component}_+60.00.nii.gz").get_fdata()
        assert np.abs(moved - made).max() > 1e-3
    assert case not in (out / "record.json").read_text()
    # its own x_T needs neither noise nor seed
    assert traverse(labelled.bundle, labelled.embeddings, out, **{**options, "num_noises": 3}, seed=1).skipped


CASE = "mni-000003"


def images(folder):
    return [nib.load(file).get_fdata() for file in sorted((folder / "images").glob("*.nii.gz"))]


@pytest.fixture(scope="module")
def six(tiny_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("six")
    return vary(tiny_bundle.directory, tiny_bundle.cohort, out, case=CASE, num_images=6, device="cpu")


def test_variations_differ_and_their_mean_and_std_are_written(six):
    made = np.stack(images(six.folder))
    assert made.shape == (6, 16, 16, 1)
    for i in range(5):
        assert np.abs(made[i] - made[i + 1]).mean() > 0.01
    np.testing.assert_allclose(nib.load(six.folder / "mean.nii.gz").get_fdata(), made.mean(axis=0), atol=1e-5)
    std = nib.load(six.folder / "std.nii.gz").get_fdata()
    np.testing.assert_allclose(std, made.std(axis=0, ddof=1), atol=1e-5)
    assert six.mean_std == pytest.approx(std.mean(), rel=1e-5)
    with Image.open(six.folder / "variations.png") as picture:
        assert np.asarray(picture).std() > 10


def test_a_variation_is_a_function_of_the_seed_and_its_place_to_the_bit(six, tiny_bundle, tmp_path):
    options = {"case": CASE, "num_images": 3, "device": "cpu"}
    fewer = vary(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "fewer", **options)
    for made, expected in zip(images(fewer.folder), images(six.folder), strict=False):
        np.testing.assert_array_equal(made, expected)
    other = vary(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "other", **options, seed=1)
    assert np.abs(images(other.folder)[0] - images(six.folder)[0]).max() > 0.01
