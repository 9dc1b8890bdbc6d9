import json
from pathlib import Path

import pytest
import torch

from monai_diffae.errors import ConfigError
from monai_diffae.networks import build_autoencoder
from monai_diffae.official import load_official
from monai_diffae.official.checkpoint_files import read_safetensors

PARITY = Path(__file__).parents[3] / "shared" / "parity"
FILES = ["official_1ch_32px", "official_3ch_64px"]

needs_parity_files = pytest.mark.skipif(not PARITY.is_dir(), reason=f"no parity files of the official code in {PARITY}")


@needs_parity_files
@pytest.mark.parametrize("name", FILES)
def test_same_z_and_eps_as_the_official_code(name):
    tensors, metadata = read_safetensors(PARITY / f"{name}.safetensors")
    network = load_official(PARITY / f"{name}.safetensors")
    assert sum(parameter.numel() for parameter in network.parameters()) == int(metadata["params"])
    with torch.inference_mode():
        z_sem = network.encode(tensors["x0"])
        eps = network(tensors["x_t"], tensors["t"], tensors["z_sem"])
    torch.testing.assert_close(z_sem, tensors["z_sem"], rtol=0, atol=1e-5)
    torch.testing.assert_close(eps, tensors["eps"], rtol=0, atol=1e-5)


@needs_parity_files
@pytest.mark.parametrize("name", FILES)
def test_configuration_is_read_off_the_tensors(name):
    _, metadata = read_safetensors(PARITY / f"{name}.safetensors")
    official = json.loads(metadata["config"])
    network = load_official(PARITY / f"{name}.safetensors")
    config, encoder = network.unet.config, network.encoder.config
    size = official["image_size"]
    assert config["in_channels"] == official["in_channels"]
    assert config["base_channels"] == encoder["base_channels"] == official["model_channels"]
    assert config["channel_mult"] == official["channel_mult"]
    assert encoder["channel_mult"] == official["enc_channel_mult"]
    assert config["num_res_blocks"] == official["num_res_blocks"]
    assert config["z_channels"] == official["enc_out_channels"]
    assert config["time_embed_channels"] == official["embed_channels"]
    assert [size // 2**level for level in config["attention_levels"]] == official["attention_resolutions"]
    assert [size // 2**level for level in encoder["attention_levels"]] == official["attention_resolutions"]


@needs_parity_files
def test_a_training_checkpoint_gives_its_ema_model(tmp_path):
    tensors, _ = read_safetensors(PARITY / f"{FILES[0]}.safetensors")
    official = {key.removeprefix("model."): tensor for key, tensor in tensors.items() if key.startswith("model.")}
    state = {f"ema_model.{key}": tensor for key, tensor in official.items()}
    state |= {f"model.{key}": torch.zeros_like(tensor) for key, tensor in official.items()}
    state |= {"x_T": torch.zeros(1), "ema_model.latent_net.layers.0.linear.weight": torch.zeros(1)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    network = load_official(tmp_path / "last.ckpt", dropout=0.1)
    assert network.unet.config["dropout"] == 0.1
    assert torch.equal(network.unet.stem.weight, official["input_blocks.0.0.weight"])


@needs_parity_files
def test_weights_that_do_not_fit_are_one_line():
    tensors, _ = read_safetensors(PARITY / f"{FILES[0]}.safetensors")
    state = {key: tensor for key, tensor in tensors.items() if key != "model.middle_block.0.in_layers.0.bias"}
    with pytest.raises(ConfigError, match=r"do not fit .*middle_stage.block.norm1.bias") as caught:
        load_official(state)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_other_weights(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        load_official(tmp_path / "none.ckpt")
    with pytest.raises(
        ConfigError, match=r"not the weights of an official Diff-AE: input_blocks.0.0.weight is missing"
    ):
        load_official(build_autoencoder(2, base_channels=8, channel_mult=(1,), num_res_blocks=1).state_dict())


def test_what_is_wrong_is_told_by_its_file(official, tmp_path):
    weights = official.random_weights(official.Official())
    changes = {
        "norm": (lambda w: {n: t for n, t in w.items() if "middle_block.0.in_layers.0.bias" not in n}, "do not fit"),
        "mlp": (lambda _: official.random_latent(), "there is no autoencoder in it"),
        "stem": (lambda w: {n: t for n, t in w.items() if n != "input_blocks.0.0.weight"}, "weight is missing"),
        "cond": (lambda w: {n: t for n, t in w.items() if "cond_emb" not in n}, "one condition per block"),
    }
    for name, (change, message) in changes.items():
        torch.save(change(weights), tmp_path / f"{name}.ckpt")
        with pytest.raises(ConfigError, match=rf"^{name}\.ckpt: .*{message}") as caught:
            load_official(tmp_path / f"{name}.ckpt")
        assert "\n" not in str(caught.value)
