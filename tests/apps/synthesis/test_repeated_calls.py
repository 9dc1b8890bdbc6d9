"""All commands that make images, called again in the same folder."""

import shutil
from functools import partial

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae import decode, edit, generate, reconstruct
from monai_diffae.errors import ConfigError

OTHER = {
    "components": {"components": [2]}, "edit": {"strengths": (1,)}, "generate": {"num_images": 2, "seed": 1},
    "path": {"num_images": 2}, "reconstruct": {"mode": "x_T", "limit": 1}, "variations": {"noise_seed": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def commands(labelled, latent_bundle):
    ids = pd.read_csv(labelled.cohort)["id"].tolist()
    inputs = labelled.bundle, labelled.cohort
    axes = {"components": [1, 2], "strengths": (0, 2), "num_noises": 1}
    of_case = partial(decode, labelled.bundle, cohort=labelled.cohort, case=ids[0])
    return {
        "components": partial(decode, labelled.bundle, show="components", embeddings=labelled.embeddings, **axes),
        "edit": partial(edit, *inputs, direction=labelled.direction, strengths=(-2, 2), cases=ids[:1]),
        "generate": partial(generate, latent_bundle, num_images=3, image_format="nii.gz"),
        "path": partial(of_case, show="path", blend=ids[1], num_images=3),
        "reconstruct": partial(reconstruct, *inputs, mode="both", limit=2),
        "variations": partial(of_case, show="variations", num_images=3),
    }


def results(folder):
    """The images and tables of a folder, without its overviews."""
    files = [file for file in folder.rglob("*") if file.name.endswith((".nii.gz", ".csv"))]
    return sorted(file.relative_to(folder) for file in [*files, *folder.glob("images/*.png")])


def pixels(file):
    return np.asarray(Image.open(file), float) if file.suffix == ".png" else nib.load(file).get_fdata()


def assert_equal(folder, other):
    """Batches may change the last digits, no more."""
    assert results(folder) == results(other)
    for file in results(folder):
        if file.suffix == ".csv":
            pd.testing.assert_frame_equal(pd.read_csv(folder / file), pd.read_csv(other / file), atol=1e-5)
        else:
            np.testing.assert_allclose(pixels(folder / file), pixels(other / file), atol=1e-5, err_msg=str(file))


@pytest.mark.parametrize("name", OTHER)
def test_the_same_call_makes_what_is_missing_and_another_one_leaves_nothing_old(name, commands, tmp_path):
    make, out, first = partial(commands[name], device="cpu"), tmp_path / "out", tmp_path / "first"
    make(out)
    shutil.copytree(out, first)
    times = {file: (out / file).stat().st_mtime_ns for file in results(out)}
    make(out)  # skipped
    assert times == {file: (out / file).stat().st_mtime_ns for file in results(out)}
    images, tables = ([file for file in times if (file.suffix == ".csv") == is_csv] for is_csv in (False, True))
    for missing in (*images[:1], *tables[:1]):
        (out / missing).unlink()
        make(out)
        assert_equal(out, first)
    (record,) = out.glob("*.json")
    assert "mni-" not in record.read_text()
    assert str(tmp_path) not in record.read_text()
    with pytest.raises(ConfigError, match="made with other"):
        make(out, **OTHER[name])
    assert_equal(out, first)
    own = (out / images[-1]).with_name("notes.txt")
    own.write_text("the user's own")
    make(out, **OTHER[name], overwrite=True)
    make(tmp_path / "fresh", **OTHER[name])
    assert_equal(out, tmp_path / "fresh")
    assert own.is_file()
