import shutil

import pytest

from monai_diffae.bundle.checksums import checksum
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("inferer#step", r"unknown config key 'inferer#step': \S+Inferer takes .*; did you mean 'steps'\?"),
        (
            "network_def#nope",
            r"unknown config key 'network_def#nope': \S+ takes encoder, encoder_frozen, unet, use_checkpoint",
        ),
        (
            "network_def#unet#nope",
            r"unknown config key 'network_def#unet#nope': \S+DenoisingUNet takes attention_levels, .*",
        ),
        ("preprocessing#nope", r"unknown config key 'preprocessing#nope': Compose takes lazy, .*, unpack_items"),
        ("preprocessing#transforms#2#nope", r"unknown config key 'preprocessing#transforms#2#nope': Resized takes .*"),
        ("inferer#steps#nope", "inferer#steps#nope: the model's configuration has no such key; see .*"),
        (
            "preprocessing#transforms#nope",
            "preprocessing#transforms#nope: the model's configuration has no such key; see .*",
        ),
        (
            "preprocessing#transforms#99",
            "preprocessing#transforms#99: the model's configuration has no such key; see .*",
        ),
        ("nope", "nope: the model's configuration has no such key; see .*"),
        ("", "'': the model's configuration has no such key; see .*"),
        ("nope#a", "nope#a: the model's configuration has no such key; see .*"),
    ],
)
def test_an_override_that_nothing_takes_is_named_in_one_line(tiny_bundle, key, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        load_bundle(tiny_bundle.directory, "cpu", overrides={key: 1})


@pytest.mark.parametrize(
    "overrides",
    [
        {"slice_step": "abc"}, {"slice_step": 1.5}, {"slice_range": "0.1,0.9"}, {"slice_range": None},
        {"slice_range": [1]}, {"val_fraction": float("nan")}, {"seed": "abc"}, {"seed": None}, {"columns": "image"},
        {"patient_pattern": 5}, {"image_keys": "image"}, {"image_size": 16}, {"image_size": [0, 0]},
    ],
)  # fmt: skip
def test_an_override_with_a_value_that_cannot_be_used_is_named(tiny_bundle, overrides):
    with pytest.raises(ConfigError, match=f"^{next(iter(overrides))} is .*; it must be "):
        load_bundle(tiny_bundle.directory, "cpu", overrides=overrides)


def test_a_tuple_counts_as_a_list(tiny_bundle):
    assert load_bundle(tiny_bundle.directory, "cpu", overrides={"slice_range": (0.2, 0.8)}).config["in_channels"] == 1


def test_an_override_may_add_an_argument_that_a_component_takes(tiny_bundle):
    assert load_bundle(tiny_bundle.directory, "cpu", overrides={"inferer#batch_size": 7}).inferer.batch_size == 7


# -- whether the folder still has the loaded model ---------------------------------------------------------------------


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))


def test_a_loaded_model_keeps_its_checksums_when_the_folder_gets_another_one(bundle):
    trained = load_bundle(bundle, "cpu")
    before = trained.made_from
    assert before == {"model": checksum(bundle), "config": file_checksum(bundle / "models" / "config.json")}
    assert trained.is_current()
    content = (bundle / "models" / "model.pt").read_bytes()
    (bundle / "models" / "model.pt").write_bytes(content + b"0")
    assert not trained.is_current()
    assert trained.made_from == before
    (bundle / "models" / "model.pt").write_bytes(content)
    assert trained.is_current()
    with (bundle / "models" / "config.json").open("a") as stream:
        stream.write("\n")
    assert not trained.is_current()


def test_a_model_in_a_folder_without_weights_is_one_line(bundle):
    trained = load_bundle(bundle, "cpu")
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(ConfigError, match=r"^bundle: there is no models/model\.pt"):
        trained.is_current()
