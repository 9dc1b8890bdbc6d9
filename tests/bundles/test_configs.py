"""The JSON files of the shipped bundles: what the model zoo checks, and that they fit each other and the package."""

import json
import re
from pathlib import Path

import pytest
import torch
from complaints import complaint
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

import monai_diffae
from monai_diffae.bundle.config import check_components, check_config, check_rules
from monai_diffae.bundle.loading import inferer_settings
from monai_diffae.errors import ConfigError
from monai_diffae.networks import preset

ROOT = Path(__file__).parents[2]
FLAT, VOLUME, FIRST_STAGE = (ROOT / "bundles" / name for name in ("diffae_2d", "diffae_3d", "autoencoder_kl_3d"))
UNTRAINED = pytest.mark.parametrize(  # those with weights take their configurations from these
    "bundle", [FLAT, VOLUME, FIRST_STAGE], ids=lambda p: p.name
)
ALL = pytest.mark.parametrize("bundle", sorted((ROOT / "bundles").iterdir()), ids=lambda p: p.name)
OVERLAYS = sorted(path for path in (ROOT / "configs").glob("*.json"))


def read(path):
    return json.loads(path.read_text())


def parser_of(*files):
    parser = ConfigParser()
    parser.read_config([str(f) for f in files])
    return parser


def config(*files):
    merged = parser_of(*files).get()
    merged.pop("_meta_", None)
    return merged


@ALL
def test_metadata_have_the_version_and_requirements_of_the_package(bundle):
    """tests/zoo and test_monai_tools_page.py check them against MONAI's schema."""
    meta = read(bundle / "configs" / "metadata.json")
    assert meta["version"] in meta["changelog"]
    assert meta["version"] == monai_diffae.__version__
    pins = [meta["monai_version"], meta["pytorch_version"], meta["numpy_version"]]
    assert all(re.fullmatch(r"\d+(\.\d+)+", p) for p in pins)
    # the zoo installs name==version; our package brings all others
    assert meta["required_packages_version"] == {"monai-diffae": monai_diffae.__version__}


@UNTRAINED
def test_keys_of_inference_have_the_defaults_of_the_training(bundle):
    train, infer = read(bundle / "configs" / "train.json"), read(bundle / "configs" / "inference.json")
    # null in the commands: they choose the number of workers, take the colour of the bundle, and read the scans
    ours = {
        "imports", "output_dir", "initialize", "run", "batch_size", "workers", "cohort", "network_def", "network",
        "preprocessing", "inferer", "colour", "cache_dir",
    }  # fmt: skip
    assert {key for key in train.keys() & infer.keys() if train[key] != infer[key]} <= ours


def test_the_settings_of_decoding_are_those_of_the_documentation():
    inferer = parser_of(FLAT / "configs" / "train.json").get_parsed_content("inferer")
    assert inferer_settings(inferer) == {
        "solver": "adams", "steps": 20, "invert_steps": 20, "inversion": "implicit", "spacing": "logsnr",
        "invert_tolerance": 0.001, "clip_range": [-1, 1], "decoder": "exact", "eta": 0.0,
    }  # fmt: skip


def configurations():
    """Files that are used together."""
    for bundle in (FLAT, VOLUME, FIRST_STAGE):
        names = [["train"], ["train", "multi_gpu_train"], ["inference"]]
        names += [["train_latent"], ["train_latent", "overlays/latent_paper"]] if bundle == FLAT else []
        for each in names:
            yield pytest.param([bundle / "configs" / f"{name}.json" for name in each], id=f"{bundle.name} {each[-1]}")
    for overlay in OVERLAYS:
        dims = 3 if overlay.stem == "latent_space" else read(overlay).get("spatial_dims")
        for bundle in [FLAT, VOLUME] if dims is None else [{2: FLAT, 3: VOLUME}[dims]]:
            yield pytest.param([bundle / "configs" / "train.json", overlay], id=f"{bundle.name} {overlay.stem}")


@pytest.mark.parametrize("files", configurations())
def test_every_key_is_used(files):
    """Nor does a second file add keys that the first one lacks."""
    known = read(files[0]).keys() if files[-1].stem == "monai_tutorial" else frozenset()  # it has other networks
    check_config(config(*files), known=known)
    if files[-1].stem == "multi_gpu_train":
        assert config(*files)["train"]["trainer"]["network"]["network"] == "@network"


@pytest.mark.parametrize(
    ("bundle", "overlays"), [(FLAT, []), (VOLUME, []), (VOLUME, ["embed_volumes"]), (VOLUME, ["encoder_view_3d"])]
)
def test_augmentation_moves_along_every_axis(bundle, overlays):
    """MONAI applies a single number to the first axis alone."""
    files = [ROOT / "configs" / f"{overlay}.json" for overlay in overlays]
    parser = parser_of(bundle / "configs" / "train.json", *files)
    transforms, dims = parser.get("augmentation#transforms"), parser.get("spatial_dims")
    affine = [t["_target_"] for t in transforms].index("RandAffined")
    for key, length in (("translate_range", dims), ("scale_range", dims), ("rotate_range", 2 * dims - 3)):
        ranges = ensure_tuple(parser.get_parsed_content(f"augmentation#transforms#{affine}#{key}"))
        assert len(ranges) == length
        assert min(ranges) > 0


@UNTRAINED
def test_a_training_sees_cases_of_train_and_a_validation_those_of_val(bundle, tiny_bundle):
    parser = parser_of(bundle / "configs" / "train.json")
    parser.update({"dataset_dir": str(tiny_bundle.cohort), "output_dir": "."})
    splits = {case.id: case.split for case in parser.get_parsed_content("cohort").cases}
    for section, split in (("train", "train"), ("validate", "val")):
        data = parser.get_parsed_content(f"{section}#dataset").data
        assert {splits[item["id"]] for item in data} == {split}


def test_encoder_sees_another_view(tiny_bundle, tmp_path):
    parser = parser_of(FLAT / "configs" / "train.json", ROOT / "configs" / "encoder_view.json")
    parser.update({"dataset_dir": str(tiny_bundle.cohort), "image_size": [16, 16], "output_dir": str(tmp_path)})
    item = parser.get_parsed_content("train#dataset")[0]
    assert item["encoder_image"].shape == item["image"].shape == (1, 16, 16)
    assert any(not torch.equal(i["image"], i["encoder_image"]) for i in parser.get_parsed_content("train#dataset"))
    item = parser.get_parsed_content("validate#dataset")[0]
    assert torch.equal(item["image"], item["encoder_image"])


def test_the_papers_settings_of_the_latent_ddim_are_an_overlay():
    parser = parser_of(*(FLAT / "configs" / f"{name}.json" for name in ("train_latent", "overlays/latent_paper")))
    parser.update({"z_channels": 512})
    network = parser.get_parsed_content("latent_network_def")
    assert (network.config["hidden_channels"], network.config["num_layers"]) == (2048, 10)
    assert (parser.get("learning_rate"), parser.get("ema_decay"), parser.get("weight_decay")) == (1e-4, 0.9999, 0.01)
    assert parser.get("max_grad_norm") is None
    assert parser.get("latent_diffusion")["prediction"] == "eps"
    losses = [parser.get("train#trainer#loss_function"), parser.get("validate#key_metric#loss#loss_fn")]
    assert [loss["_target_"] for loss in losses] == ["torch.nn.L1Loss"] * 2


@pytest.mark.parametrize("name", ["paper_64", "paper_128", "paper_256"])
def test_the_papers_overlays_are_the_presets(name):
    parser = parser_of(FLAT / "configs" / "train.json", ROOT / "configs" / f"{name}.json")
    with torch.device("meta"):
        network, expected = parser.get_parsed_content("network_def"), preset(name)
    for part in ("unet", "encoder"):
        assert getattr(network, part).config == getattr(expected, part).config


# -- wrong values end in one line that names the key, before or while the data are read --------------------------------


def refusal(make_workflow, overrides):
    return complaint(lambda: make_workflow({"check_memory": True, **overrides}).run())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"image_sise": [16, 16]}, ["image_sise", "did you mean 'image_size'"]),
        ({"train#trainer#max_epoch": 3}, ["train#trainer#max_epoch", "did you mean 'max_epochs'"]),
        ({"dataset_dir": "/nowhere/cohort.csv"}, ["cohort.csv"]),
        ({"diffusion#schedule": "linear"}, ["schedule", "linear_beta"]),
        pytest.param({"in_channels": 3}, ["channel"], marks=pytest.mark.goal(id="R9")),
        (
            {"image_size": [50, 50], "channel_mult": [1, 2, 4], "dataset_dir": "/gone"},
            ["image_size is [50, 50]; the network needs multiples of"],
        ),
        ({"image_size": [64, 64], "channel_mult": [1] * 6}, ["would be one pixel"]),
    ],
)
def test_a_wrong_key_or_value_is_named(make_workflow, overrides, words):
    line = refusal(make_workflow, overrides)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"overwrite": "False"}, "overwrite is 'False'"),
        ({"batch_size": 0}, "batch_size is 0; it must be"),
        ({"learning_rate": True}, "learning_rate is True"),
        ({"percentiles": 99}, "percentiles is 99"),
        ({"slice_range": [10, 20]}, "slice_range is [10, 20]; it must be two numbers from 0 to 1"),
    ],
)
def test_a_value_out_of_range_is_named(value, words):
    config = read(FLAT / "configs" / "train.json")
    with pytest.raises(ConfigError) as caught:
        check_rules({**config, **value})
    assert words in str(caught.value)


@pytest.mark.parametrize("key", ["num_rounds", "first_stage_bundle"])
def test_typical_patches_are_refused_in_federations_and_on_latents(key):
    overlay = read(ROOT / "configs" / "words.json")
    config = {"train": {"trainer": {"predicted": overlay["train#trainer#predicted"]}}}
    check_components(config)
    with pytest.raises(ConfigError, match=f"^{key}: this training cannot use typical patches"):
        check_components({**config, key: 2})


def test_an_override_of_what_refers_to_a_key_makes_the_key_no_unknown_one(make_workflow):
    make_workflow({"train#trainer#max_epochs": 1, "train#dataloader#batch_size": 4, "optimizer#lr": 0.01})
