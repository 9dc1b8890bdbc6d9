"""A model's description: taken from the configuration of a training, and written into those of folders."""

import json
from pathlib import Path

import pytest
from complaints import complaint
from monai.bundle import verify_net_in_out
from tiny_bundles import KINDS, STORED, TINY, TINY_ON_LATENTS, copy_tiny

from monai_diffae.apps.training.train import open_training
from monai_diffae.bundle import describe_folder, init_bundle, trusting
from monai_diffae.bundle.description import write_values
from monai_diffae.bundle.loading import untrained_network
from monai_diffae.bundle.model_file import read_description, read_model, write_model

ROOT = Path(__file__).parents[2]
PRIVATE = {"columns": {"image": "scan of Doe"}, "patient_pattern": "Doe/(.*)", "dataset_dir": "/home/doe/scans"}


def run(folder, overlays=(), **values):
    """The parser of a training that begins."""
    files = [folder / "configs" / "overlays" / f"{name}.json" for name in overlays]
    unchecked = dict.fromkeys(read(folder).keys() & {"check_memory"}, False)
    values = {"bundle_root": str(folder), "device": "cpu", **unchecked, **values}
    workflow = open_training(folder / "configs" / "train.json", files, values)
    workflow.initialize()
    return workflow.parser


def write(folder, overlays=(), **values):
    """Whether the values of a training were written."""
    return write_values(
        run(folder, overlays, **values).get_parsed_content("train#checkpoint#description#run_config"), folder
    )


def read(folder):
    return json.loads((folder / "configs" / "train.json").read_text())


@pytest.fixture
def folder(tmp_path):
    return init_bundle(tmp_path / "new")


def test_changed_values_are_written_and_nothing_else(folder):
    file, before = folder / "configs" / "train.json", read(folder)
    content = file.read_bytes()
    of_the_run = {
        "device": "cpu", "workers": 3, "overwrite": True, "output_dir": str(folder / "out"), "rank": 1, "world_size": 2,
        "tracking_uri": "sqlite:///doe", "train#dataset#cache_dir": "/home/doe", "run_name": "scans/doe",
        "dataset_dir": "/home/doe", "cache_dir": "/home/doe", "strides": None,
    }  # fmt: skip
    assert not write(folder, **of_the_run)
    assert file.read_bytes() == content
    changed = {
        "columns": PRIVATE["columns"], "patient_pattern": "Doe/(.*)", "image_size": [16, 16], "max_epochs": 3,
        "optimizer": {"_target_": "torch.optim.SGD", "params": [], "lr": 0.1, "momentum": 0.9, "nesterov": True},
    }  # fmt: skip
    parts = {"network_def#unet#dropout": 0.1, "inferer#batch_size": 7, "augmentation#transforms#1#prob": 0.25}
    assert write(folder, **of_the_run, **changed, **parts)
    assert list(read(folder)) == list(before)
    expected = before | changed
    expected["network_def"]["unet"]["dropout"], expected["inferer"]["batch_size"] = 0.1, 7
    expected["augmentation"]["transforms"][1]["prob"] = 0.25
    assert read(folder) == expected
    written = file.read_bytes()
    assert written.count(b"\n\n") == content.count(b"\n\n")  # between groups of keys
    assert not write(folder)
    assert file.read_bytes() == written


@pytest.mark.parametrize(
    ("name", "overlays"),
    [("diffae_2d", ["encoder_view", "fp32"]), ("diffae_2d", ["ct"]), ("diffae_3d", ["fp32", "encoder_view_3d"])],
)
def test_formulas_stay_and_a_second_run_adds_the_entries_of_an_overlay_only_once(tmp_path, name, overlays):
    folder, other = init_bundle(tmp_path / "new", name), init_bundle(tmp_path / "other", name)
    expected = run(other, overlays)
    assert write(folder, overlays)
    written = read(folder)
    assert written["network_def"]["encoder"]["channel_mult"] == "$[*@channel_mult, @channel_mult[-1]]"
    assert "ct" in overlays or '"$[side // 8 for side in @image_size]"' in json.dumps(written)
    assert "::" not in json.dumps(written)
    for again in (overlays, overlays[-1:], ()):
        parser = run(folder, again)
        assert all(parser.get(key) == expected.get(key) for key in ("augmentation", "train", "initialize"))
        assert parser.get_parsed_content("train#checkpoint#description#model") == expected.get_parsed_content(
            "train#checkpoint#description#model"
        )
        assert not write(folder, again)
    assert read(folder) == written


def test_a_model_on_latents_is_trained_further_in_its_folder_without_its_first_stage(tmp_path):
    stage = copy_tiny(tmp_path / "stage", "first_stage")
    folder = init_bundle(tmp_path / "new", "diffae_3d")
    values = {**TINY_ON_LATENTS, "first_stage_bundle": str(stage)}
    assert write(folder, ["latent_space"], **values)
    written = read(folder)
    assert written["first_stage_bundle"] == "$@bundle_root + '/models/model.safetensors'"
    assert written["train"]["dataset"]["_target_"] == "monai_diffae.engines.LatentCases"
    assert not write(folder, ["latent_space"], **values)
    assert not write(folder, first_stage_bundle=str(stage))
    assert read(folder) == written


def test_a_path_that_an_overlay_needs_is_asked_for_again(folder):
    assert write_values({**read(folder), "atlas": "/home/doe/atlas"}, folder)
    assert read(folder)["atlas"] == "???"


SHIPPED = ("chest_xray", "hippocampus", "lung_nodules")
MODELS = [*(STORED / kind for kind in KINDS), *(ROOT / "bundles" / name for name in SHIPPED)]


@pytest.mark.parametrize("source", MODELS, ids=lambda path: path.name)
def test_a_recipe_with_a_models_values_describes_the_model_again(source, tmp_path):
    model = source / "models" / "model.safetensors"
    folder = init_bundle(tmp_path / "new", model)
    parser, expected = run(folder), read_description(model)
    described = parser.get_parsed_content("train#checkpoint#description#model")
    for description in (expected, described):
        assert all(parser[id] == value for id, value in description.pop("recipe").items())
        for key in ("kind", "data", "figures", "versions", "first_stage_sha256"):
            description.pop(key, None)
    assert described == expected
    content = (folder / "configs" / "train.json").read_bytes()
    assert not write(folder)
    assert (folder / "configs" / "train.json").read_bytes() == content


def test_a_description_has_no_name_of_a_column_patient_or_folder_and_no_formula(folder, tmp_path):
    described = run(folder, ["encoder_view"], **TINY, **PRIVATE).get_parsed_content(
        "train#checkpoint#description#model"
    )
    text = json.dumps(described)
    names = ("Doe", "doe", str(tmp_path), "$", "columns", "patient_pattern", "dataset")
    assert [name for name in names if name in text] == []
    assert described["network_def"]["encoder"]["channel_mult"] == [1, 2, 2]
    assert described["frozen"] == ["channel_mult", "image_size", "model_range"]
    assert described["recipe"]["augmentation#transforms#2"]["spatial_size"] == [2, 2]
    file = write_model(tmp_path / "model.safetensors", "autoencoder", {}, described)
    assert read_model(file).description == described


def test_what_a_formula_used_by_way_of_a_reference_is_frozen_too(folder):
    write(folder, size=[64, 64], image_size="@size")
    assert {"image_size", "size"} <= set(run(folder).get_parsed_content("train#checkpoint#description#model")["frozen"])


def test_a_formula_that_gives_no_plain_value_is_named(folder):
    with trusting():
        parser = run(folder, **{"inferer#spacing": "$torch.nn.Identity()"})
    message = "inferer#spacing: the formula '$torch.nn.Identity()' gives no plain value, so a model file cannot hold it"
    assert message in complaint(parser.get_parsed_content, "train#checkpoint#description#model")


def test_notes_of_monai_are_left_out_and_other_free_text_is_refused_before_the_training(folder):
    flip = {"_target_": "RandFlipd", "_desc_": "left and right", "keys": "image", "prob": 0.5}
    noted = {"augmentation": flip, "preprocessing#_desc_": "as it was read"}
    described = run(folder, **noted).get_parsed_content("train#checkpoint#description#model")
    assert described["recipe"]["augmentation"] == {key: flip[key] for key in flip if key != "_desc_"}
    assert "_desc_" not in json.dumps(described)
    parser = run(folder, augmentation={**flip, "keys": ["image", "encoder image"], "allow_missing_keys": True})
    message = "recipe#augmentation#keys#1: is 'encoder image', which a model file cannot hold; write a number"
    assert message in complaint(parser.get_parsed_content, "train#checkpoint#description#model")


FEW = {"base_channels": 8, "num_res_blocks": 1, "z_channels": 4, "network_def#unet#time_embed_channels": 8}


@pytest.mark.parametrize(
    ("overlays", "values", "shape"),
    [(["paper_128"], FEW, [128, 128]), (["paper_256"], FEW, [256, 256]),
     ([], {**FEW, "channel_mult": [1, 1, 1, 1, 2, 5], "image_size": [64, 64]}, [64, 64]),
     ([], {**FEW, "in_channels": 3, "colour": "rgb"}, [64, 64]),
     ([], {**FEW, "channel_mult": [1, 2], "image_size": [24, 32]}, [24, 32])],
    ids=["paper_128", "paper_256", "six levels", "rgb", "24 x 32"],
)  # fmt: skip
def test_the_metadata_of_a_trained_model_are_true(tmp_path, overlays, values, shape):
    folder = init_bundle(tmp_path / "new", "diffae_2d")
    description = run(folder, overlays, **values).get_parsed_content("train#checkpoint#description#model")
    write_model(
        folder / "models" / "model.safetensors", "autoencoder", untrained_network(description).state_dict(), description
    )
    describe_folder(folder)
    meta, config = (str(folder / "configs" / f"{name}.json") for name in ("metadata", "inference"))
    verify_net_in_out("network_def", meta_file=meta, config_file=config, bundle_root=str(folder), device="cpu")
    (image,) = json.loads((folder / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"].values()
    told = (image["num_channels"], image["spatial_shape"], image["value_range"])
    assert told == (values.get("in_channels", 1), shape, [-1, 1])


def test_the_metadata_of_a_model_on_latents_have_the_size_of_these(tmp_path):
    folder = copy_tiny(tmp_path / "new", "3d_on_latents")
    describe_folder(folder)
    (image,) = json.loads((folder / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"].values()
    assert image["spatial_shape"] == [8, 8, 12]
