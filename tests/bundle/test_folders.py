"""What ``init`` and trainings write into a bundle's folder: overlays, copies, and the model card."""

import json
from pathlib import Path

import pytest
from complaints import complaint
from tiny_bundles import rewrite

from monai_diffae import train
from monai_diffae.bundle import describe_folder, init_bundle
from monai_diffae.bundle.folders import NOTE, complete_bundle, names_with_weights

ROOT = Path(__file__).parents[2]
ALL = {path.stem for path in (ROOT / "configs").glob("*.json")}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("diffae_2d", ALL - {"anchored_3d", "latent_space", "embed_volumes", "encoder_view_3d"}),
     ("autoencoder_kl_3d", {"fp32"}),
     ("diffae_3d",
      {"anchored_3d", "fp32", "latent_space", "embed_volumes", "encoder_view_3d", "unconditional", "words"})],
)  # fmt: skip
def test_init_copies_the_overlays_that_fit(name, expected, tmp_path):
    directory = init_bundle(tmp_path / "new", name)
    own = {path.stem for path in (ROOT / "bundles" / name / "configs" / "overlays").iterdir()}
    assert {path.stem for path in (directory / "configs" / "overlays").iterdir()} == expected | own


@pytest.mark.parametrize("name", names_with_weights())
def test_shipped_weights_have_the_configuration_of_their_description(name, tmp_path):
    model = ROOT / "bundles" / name / "models" / "model.safetensors"
    shipped, described = init_bundle(tmp_path / "a", name), init_bundle(tmp_path / "b", model)
    by_path = init_bundle(tmp_path / "c", model.parents[1])
    assert sorted(map(str, by_path.rglob("*"))) == [
        str(by_path / path.relative_to(shipped)) for path in sorted(shipped.rglob("*"))
    ]
    for file in (path for path in described.rglob("*") if path.is_file() and path.parent.name != "docs"):
        if file.name != "metadata.json":
            assert file.read_bytes() == (shipped / file.relative_to(described)).read_bytes(), "run make configs"


def test_values_of_another_dimension_are_one_line(tmp_path):
    folder = init_bundle(tmp_path / "new", "diffae_3d")
    (tmp_path / "scans").mkdir()
    message = "image_size is [64, 64], but spatial_dims is 3; give 3 numbers"
    assert complaint(train, folder, tmp_path / "scans", overrides={"image_size": [64, 64]}).startswith(message)
    message = "spacing_mm is [1.5, 1.5, 1.5], but spatial_dims is 2; give 2 numbers, or omit the"
    assert complaint(train, folder, tmp_path / "scans", overlays=[ROOT / "configs" / "ct.json"]).startswith(message)


def test_a_copy_of_a_trained_bundle_has_its_model_and_configurations_and_no_checkpoint(bundle, tmp_path):
    (bundle / "models" / "checkpoint.pt").write_bytes(b"of the training")
    (bundle / "configs" / "mine.json").write_text("{}")
    for copy in (init_bundle(tmp_path / "a", bundle), init_bundle(tmp_path / "b", tmp_path / "a")):
        files = {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        assert "models/checkpoint.pt" not in files
        for name in ("models/model.safetensors", "models/model.pt", "configs/train.json", "configs/mine.json"):
            assert files[name] == (bundle / name).read_bytes()
    with_model = tmp_path / "latent"
    complete_bundle(bundle, with_model, with_model=True)
    rewrite(bundle, lambda tensors: tensors, percentiles=[1, 99])
    message = "output_dir: latent holds another trained model; choose another output_dir"
    assert complaint(complete_bundle, bundle, with_model, with_model=True) == message


def card_of(bundle):
    return (bundle / "docs" / "README.md").read_text()


def figures_of(bundle):
    return json.loads((bundle / "configs" / "metadata.json").read_text())["eval_metrics"]


def test_the_card_of_a_recipe_says_what_the_description_says(bundle):
    rewrite(bundle, lambda tensors: tensors, data={"train": 8, "val": 4}, figures={"loss": 0.25, "z_sem_usage": 1.5})
    for _ in range(2):
        describe_folder(bundle)
        card = card_of(bundle)
        assert "The bundle has no weights" not in card
        assert card.count("Cases: 8 for training, 4 for validation.") == card.count("| loss | 0.25 |") == 1
        assert "Images of 16 x 16 pixels, intensities from the 0.5th to the 99.5th percentile" in card
        assert figures_of(bundle) == {"loss": 0.25, "z_sem_usage": 1.5}
    rewrite(bundle, lambda tensors: tensors, data={"train": 9}, figures={})
    describe_folder(bundle)
    assert "Cases: 9 for training." in card_of(bundle)
    assert "| loss |" not in card_of(bundle)
    assert figures_of(bundle) == {}


def test_a_card_that_people_wrote_is_marked_once_as_that_of_earlier_weights(tmp_path, caplog):
    shipped = init_bundle(tmp_path / "shipped", "hippocampus")
    heading, _, rest = card_of(shipped).partition("\n")
    assert "mse_x_T" in figures_of(shipped)
    for _ in range(2):
        describe_folder(shipped)
        assert card_of(shipped) == f"{heading}\n\n{NOTE}\n{rest}"
        assert figures_of(shipped).keys() == {"loss", "loss_other_z_sem", "z_sem_usage"}
    (shipped / "configs" / "metadata.json").write_text("{")
    describe_folder(shipped)
    assert "the model card still describes the earlier weights (metadata.json: cannot be read" in caplog.text
