"""Loading a trained bundle: overrides, and whether it is current."""

import pytest
from tiny_bundles import rewrite

from monai_diffae.bundle import checksum, load_bundle
from monai_diffae.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("inferer#step", r"unknown config key 'inferer#step': \S+Inferer takes .*; did you mean 'steps'\?"),
        ("preprocessing#transforms#2#nope", r"unknown config key 'preprocessing#transforms#2#nope': Resized takes .*"),
        ("inferer#steps#nope", "inferer#steps#nope: the model's description has no such key; see monai-diffae info .*"),
        ("nope", "nope: the model's description has no such key; see monai-diffae info .*"),
    ],
)
def test_an_override_that_nothing_takes_is_named_in_one_line(tiny_bundle, key, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        load_bundle(tiny_bundle.directory, "cpu", overrides={key: 1})


def test_overrides_replace_values_and_add_arguments(tiny_bundle):
    overrides = {"slice_range": (0.2, 0.8), "inferer#batch_size": 7, "inferer#steps": 5}
    loaded = load_bundle(tiny_bundle.directory, "cpu", overrides=overrides)
    assert (loaded.inferer.batch_size, loaded.inferer.steps) == (7, 5)
    assert list(loaded.config["slice_range"]) == [0.2, 0.8]


def test_a_loaded_model_keeps_its_checksum_when_the_folder_gets_another_one(bundle):
    trained, file = load_bundle(bundle, "cpu"), bundle / "models" / "model.safetensors"
    before, content = trained.made_from, file.read_bytes()
    assert before == {"model": checksum(bundle)}
    rewrite(bundle, lambda tensors: tensors, percentiles=[1, 99])
    assert not trained.is_current()
    assert trained.made_from == before
    file.write_bytes(content)
    assert trained.is_current()
    file.unlink()
    with pytest.raises(ConfigError, match=r"^bundle: there is no models/model\.safetensors"):
        trained.is_current()


def test_a_file_is_a_bundle_without_its_folder(tiny_bundle, tmp_path):
    file = tmp_path / "any_name.safetensors"
    file.write_bytes((tiny_bundle.directory / "models" / "model.safetensors").read_bytes())
    assert load_bundle(file, "cpu").sha256 == checksum(file) == checksum(tiny_bundle.directory)
    assert load_bundle(file, "cpu").z_sem_usage == 1.0
