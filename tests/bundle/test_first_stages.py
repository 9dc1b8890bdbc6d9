"""First stages of others: what ``init`` takes, and how a training fits one to its scans."""

import json
import shutil

import pandas as pd
import pytest
import torch
from complaints import complaint
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.bundle import verify_net_in_out
from monai.networks.nets import AutoencoderKL
from tiny_bundles import TINY_ON_LATENTS, copy_tiny, tiny_cohort

from monai_diffae import export, info, init, reconstruct, train
from monai_diffae.apps.training.train import open_training
from monai_diffae.bundle import load_bundle, load_first_stage
from monai_diffae.bundle.code import check_code
from monai_diffae.bundle.folders import write_model_card
from monai_diffae.bundle.model_file import read_description
from monai_diffae.errors import ConfigError, ScanError

COMMON = {
    "in_channels": 1, "out_channels": 1, "attention_levels": [False] * 2, "latent_channels": 4, "norm_num_groups": 4,
    "num_res_blocks": [1, 1], "with_encoder_nonlocal_attn": True, "with_decoder_nonlocal_attn": False,
}  # fmt: skip
MAISI = {**COMMON, "num_channels": [4, 8], "norm_float16": True, "num_splits": 4}
GENERATIVE = {**COMMON, "num_channels": [4, 8], "use_checkpointing": True}
ZOO = {
    "imports": ["$import torch"], "dims": 3, "network_def": {"_target_": "monai.networks.nets.DiffusionModelUNet"},
    "masks": {"_target_": "any.AutoencoderKlMaisi", "spatial_dims": "@dims", **MAISI, "out_channels": 9},
    "autoencoder_def": {"_target_": "any.AutoencoderKlMaisi", "spatial_dims": "@dims", **MAISI},
    "older_def": {"_target_": "generative.networks.nets.AutoencoderKL", "spatial_dims": "@dims", **GENERATIVE},
}  # fmt: skip


def autoencoder(kind=AutoencoderKlMaisi):
    torch.manual_seed(0)
    return kind(3, **MAISI) if kind is AutoencoderKlMaisi else kind(3, channels=[4, 8], **COMMON)


def as_in_generative(state):
    names = {"attn.to_": "to_", "attn.out_proj": "proj_attn", "postconv": "conv"}
    for new, old in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    return state


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A folder as in MONAI's model zoo."""
    root = tmp_path_factory.mktemp("zoo")
    for folder in ("configs", "models"):
        (root / folder).mkdir()
    (root / "configs" / "inference.json").write_text(json.dumps(ZOO))
    (root / "configs" / "names.json").write_text('["a list"]')
    torch.save({"unet_state_dict": {"a": torch.zeros(1)}}, root / "models" / "model.pt")
    torch.save(autoencoder().state_dict(), root / "models" / "autoencoder_1.pt")
    torch.save({"model": as_in_generative(autoencoder(AutoencoderKL).state_dict())}, root / "models" / "older.pt")
    return root


@pytest.fixture(scope="module")
def bundle(zoo, tmp_path_factory):
    return init(tmp_path_factory.mktemp("made") / "bundle", bundle="diffae_3d", first_stage=zoo).path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return tiny_cohort(tmp_path_factory.mktemp("heads") / "cohort", "kl")


def check_weights(bundle, expected):
    torch.testing.assert_close(load_first_stage(bundle).autoencoder.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_the_autoencoder_of_a_zoo_bundle_is_found_among_its_files(bundle):
    check_weights(bundle, autoencoder())
    assert json.loads((bundle / "configs" / "train.json").read_text())["model_range"] == [0, 1]


def test_a_file_of_weights_of_monai_generative_is_taken_as_monai_does(zoo, tmp_path):
    bundle = init(tmp_path / "bundle", bundle="diffae_3d", first_stage=zoo / "models" / "older.pt").path
    expected = AutoencoderKL(3, channels=[4, 8], **COMMON)
    expected.load_old_state_dict(torch.load(zoo / "models" / "older.pt")["model"])
    check_weights(bundle, expected)


def test_a_trained_first_stage_of_ours_brings_its_preparation_and_scale(tmp_path):
    own = copy_tiny(tmp_path / "own", "first_stage")
    bundle = init(tmp_path / "bundle", bundle="diffae_3d", first_stage=own).path
    assert torch.equal(load_first_stage(bundle).latent_std, load_first_stage(own).latent_std)
    assert json.loads((bundle / "configs" / "train.json").read_text())["image_size"] == [16, 16, 24]


def test_weights_without_their_definition_and_other_bundles_are_refused(zoo, tmp_path):
    with pytest.raises(ConfigError, match="diffae_3d only"):
        init(tmp_path / "a", first_stage=zoo)
    with pytest.raises(ConfigError, match=r"model\.pt has no weights that fit"):
        init(tmp_path / "b", bundle="diffae_3d", first_stage=zoo / "models" / "model.pt")
    assert not (tmp_path / "b").exists()


def only(folder, **definition):
    """Weights, and JSON files beside them: damaged, with references that fail or grow, and with this definition."""
    (folder / "a.json").write_text('{"AutoencoderKL')
    torch.save(autoencoder(AutoencoderKL).state_dict(), folder / "weights.pt")
    plain = {"_target_": "monai.networks.nets.AutoencoderKL", "spatial_dims": 3, "channels": [4, 8], **COMMON}
    parts = {"elsewhere": {**plain, "channels": "@other"}, "bad": {**plain, "channels": [4]}, "its": plain | definition}
    grown = {"grown": {**plain, "channels": "@b0"}, **{f"b{n}": [f"@b{n + 1}"] * 2 for n in range(16)}, "b16": 4}
    (folder / "b.json").write_text(json.dumps(grown | parts))
    return folder / "weights.pt"


def test_damaged_and_other_files_and_definitions_are_skipped(zoo, tmp_path):
    check_weights(
        init(tmp_path / "one", bundle="diffae_3d", first_stage=only(tmp_path)).path, autoencoder(AutoencoderKL)
    )
    source = shutil.copytree(zoo, tmp_path / "zoo")
    (source / "models" / "autoencoder_0.pt").write_bytes(b"damaged")
    check_weights(init(tmp_path / "two", bundle="diffae_3d", first_stage=source).path, autoencoder())
    for file in ("autoencoder_1.pt", "older.pt"):
        (source / "models" / file).unlink()
    with pytest.raises(ScanError, match=r"autoencoder_0\.pt: cannot be read"):
        init(tmp_path / "three", bundle="diffae_3d", first_stage=source)


@pytest.mark.parametrize(
    ("value", "message"),
    [("$open('made', 'w') and 4", "which a model file cannot hold"),
     ({"_target_": "os.mkdir", "path": "made"}, "not trusted to use the target 'os.mkdir'")],
    ids=["formula", "target"],
)  # fmt: skip
def test_a_definition_runs_no_code(tmp_path, monkeypatch, value, message):
    monkeypatch.chdir(tmp_path)
    source = only(tmp_path, latent_channels=value)
    assert message in complaint(init, tmp_path / "a", bundle="diffae_3d", first_stage=source)
    assert not (tmp_path / "made").exists()


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match="first_stage: there is no such file or folder as 'zoo'"):
        init(tmp_path / "a", bundle="diffae_3d", first_stage=tmp_path / "zoo")


def test_the_metadata_are_true_if_a_definition_leaves_out_what_monai_has_as_a_default(tmp_path):
    bundle = copy_tiny(tmp_path / "new", "3d_on_latents")
    description = read_description(bundle / "models" / "model.safetensors")
    del description["first_stage"]["autoencoder"]["channels"]
    write_model_card(bundle, description)
    (image,) = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"].values()
    assert image["spatial_shape"] == [2, 2, 3]  # four levels


def initialized(bundle, cohort, **values):
    values = {**TINY_ON_LATENTS, "bundle_root": str(bundle), "dataset_dir": str(cohort), **values}
    workflow = open_training(bundle / "configs" / "train.json", [], values)
    workflow.initialize()
    return workflow.parser


def test_a_training_measures_the_latents_and_warns_if_images_come_back_unlike(bundle, cohort, caplog):
    parser = initialized(bundle, cohort)
    first_stage = parser.get_parsed_content("first_stage")
    images = parser.get_parsed_content("train#dataset")
    latents = torch.cat([first_stage.encode(item["image"][None]) for item in images.without_augmentation()])
    assert float(latents.std()) == pytest.approx(1, abs=0.02)
    assert first_stage.image_range == (0, 1)
    assert "the first stage does not fit these images (SSIM" in caplog.text


@pytest.mark.parametrize("good", [[2, 5], []], ids=["two of twelve", "none"])
def test_images_that_cannot_be_read_are_replaced_by_others(bundle, cohort, tmp_path, caplog, good):
    table = pd.read_csv(cohort)
    table["image"] = [str(cohort.parent / image) for image in table["image"]]
    train, others = (table[(table["split"] == "train") == is_train] for is_train in (True, False))
    rows = pd.concat([train.head(1)] * 12, ignore_index=True)
    for number in rows.index:
        file = tmp_path / f"{number:02}.nii.gz"
        shutil.copy(rows["image"][number], file) if number in good else file.write_bytes(b"damaged")
        rows.loc[number, ["id", "image"]] = file.name, str(file)
    pd.concat([rows, others]).to_csv(tmp_path / "cohort.csv", index=False)
    caplog.set_level("INFO", logger="monai_diffae")
    if good:
        initialized(bundle, tmp_path / "cohort.csv")
        assert "reconstructs 2 training images" in caplog.text
    else:
        message = complaint(initialized, bundle, tmp_path / "cohort.csv")
        assert message.startswith("first_stage: no training image can be read")


def test_a_dataset_of_monai_is_measured_too(bundle, cohort):
    data = {"_target_": "CacheDataset", "data": "$@cohort.items('train')", "transform": "@preprocessing"}
    parser = initialized(bundle, cohort, **{"train#dataset": data, "validate#dataset#first_stage": None})
    assert parser.get_parsed_content("first_stage").latent_std > 0


def test_the_formula_of_earlier_trainings_is_still_trusted():
    check_code({"initialize": ["$bundle.fit_first_stage(@first_stage)"]}, "train.json")


def test_sites_of_a_federation_cannot_each_measure_a_scale(bundle, cohort):
    message = complaint(initialized, bundle, cohort, num_rounds=2)
    assert "each site would measure another scale" in message


@pytest.mark.slow
def test_a_model_on_its_latents_is_like_any_other(bundle, cohort, tmp_path):
    folder, values = (
        tmp_path / "out",
        {**TINY_ON_LATENTS, "num_pictures": 1, "cache_latents": True, "augmentation": None},
    )
    train(bundle, cohort, folder, overrides=values)
    before = load_bundle(folder, "cpu").inferer.first_stage
    train(bundle, cohort, folder, overrides={"max_epochs": 2})
    assert torch.equal(load_bundle(folder, "cpu").inferer.first_stage.latent_std, before.latent_std)
    assert info(folder).figures["description"]["first_stage"]["image_range"] == [0, 1]
    reconstruct(folder, cohort, tmp_path / "back", mode="both", limit=1, device="cpu")
    assert export(folder, tmp_path / "onnx", format="onnx").figures["networks"].keys() > {"first_stage_decoder.onnx"}
    configs, values = folder / "configs", {"device": "cpu", "bundle_root": str(folder)}
    verify_net_in_out("network_def", configs / "metadata.json", configs / "inference.json", **values)
    train(folder, cohort, overrides={"model_range": [-1, 1], "max_epochs": 1, "overwrite": True})  # measures again
    after = load_bundle(folder, "cpu").inferer.first_stage
    assert after.image_range == [-1, 1]
    assert after.latent_std != before.latent_std
