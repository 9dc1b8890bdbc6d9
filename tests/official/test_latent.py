import json
import re
from pathlib import Path

import pytest
import torch

from monai_diffae.errors import ConfigError
from monai_diffae.official import load_official, load_official_latent
from monai_diffae.official.checkpoint_files import read_safetensors

FILE = Path(__file__).parents[3] / "shared" / "parity" / "official_latent_mlp.safetensors"
MEAN, STD = torch.arange(16.0) / 10, torch.linspace(0.5, 2, 16)


@pytest.mark.skipif(not FILE.is_file(), reason="no ../shared/parity with the official numbers")
def test_same_eps_as_the_official_code(official):
    tensors, metadata = read_safetensors(FILE)
    config = json.loads(metadata["config"])
    network = load_official_latent(FILE)
    with torch.inference_mode():
        eps = network(tensors["z_t"], tensors["t"])
    torch.testing.assert_close(eps, tensors["eps"], rtol=0, atol=1e-5)
    assert network.config["z_channels"] == config["num_channels"]
    assert network.config["hidden_channels"] == config["num_hid_channels"]
    assert network.config["num_layers"] == config["num_layers"]
    assert network.config["time_channels"] == config["num_time_emb_channels"]
    assert network.config["skip_layers"] == [1, 2, 3, 4]
    weights = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    random = official.random_latent(z=32, hidden=96, layers=5, skips=(1, 2, 3, 4))
    assert {key: value.shape for key, value in random.items()} == {key: value.shape for key, value in weights.items()}
    reference = official.predict_latent(weights, tensors["z_t"], tensors["t"])
    torch.testing.assert_close(reference, tensors["eps"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "sizes", [{}, {"z": 24, "hidden": 24, "skips": ()}, {"layers": 6, "skips": (1, 3), "z": 7, "hidden": 33}], ids=str
)
def test_same_eps_as_the_reference(official, sizes):
    weights = official.random_latent(**sizes)
    network = load_official_latent(weights)
    assert network.config["skip_layers"] == list(sizes.get("skips", (1, 2, 3)))
    z_t, t = torch.randn(3, network.z_channels), torch.tensor([0, 17, 999])
    with torch.inference_mode():
        eps = official.predict_latent(weights, z_t, t)
        torch.testing.assert_close(network(z_t, t), eps, rtol=0, atol=1e-5)


def checkpoint(official):
    """What the official latent training saves: both models, each with autoencoder and MLP, and the statistics."""
    state = {}
    for prefix, seed in (("model.", 0), ("ema_model.", 1)):
        of = official.Official(z=16)
        state |= {prefix + name: tensor for name, tensor in official.random_weights(of, seed=seed).items()}
        state |= {f"{prefix}latent_net.{name}": tensor for name, tensor in official.random_latent(seed).items()}
    return state | {"x_T": torch.zeros(1, 1, 32, 32), "conds_mean": MEAN[None], "conds_std": STD[None]}


def test_the_averaged_network_of_a_checkpoint_with_its_statistics(official, tmp_path):
    state = checkpoint(official)
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    network = load_official_latent(tmp_path / "last.ckpt")
    assert torch.equal(network.head.weight, state["ema_model.latent_net.layers.3.linear.weight"])
    assert torch.equal(network.z_mean, MEAN)
    assert torch.equal(network.z_std, STD)
    assert load_official(tmp_path / "last.ckpt").z_channels == 16  # the autoencoder of the same file
    only_model = {name: tensor for name, tensor in state.items() if not name.startswith("ema_model.latent_net.")}
    network = load_official_latent(only_model)
    assert torch.equal(network.head.weight, state["model.latent_net.layers.3.linear.weight"])


def test_the_mlp_alone_under_any_prefix_and_names_that_the_code_does_not_use(official):
    weights = official.random_latent()
    expected = load_official_latent(weights).state_dict()
    assert torch.equal(expected["head.bias"], weights["layers.3.linear.bias"])
    once = {name: tensor for name, tensor in weights.items() if "cond_layers" not in name}
    # older versions of the official code have a time projection in the last layer too, and never call it
    older = weights | {"layers.3.linear_emb.weight": torch.zeros(16, 16)}
    prefixed = [{prefix + n: t for n, t in weights.items()} for prefix in ("ema_model.", "latent_net.")]
    for state in (once, older, *prefixed):
        loaded = load_official_latent(state).state_dict()
        assert all(torch.equal(t, expected[n]) or t.isnan().all() for n, t in loaded.items())


def test_statistics_of_the_official_file_come_first(official, tmp_path):
    statistics = {"conds": torch.zeros(5, 16), "conds_mean": MEAN + 1, "conds_std": STD.double()}
    torch.save(statistics, tmp_path / "latent.pkl")
    for given in (tmp_path / "latent.pkl", str(tmp_path / "latent.pkl"), statistics):
        network = load_official_latent(checkpoint(official), statistics=given)
        assert torch.equal(network.z_mean, MEAN + 1)
    torch.testing.assert_close(network.denormalise(torch.zeros(1, 16))[0], MEAN + 1)


def without(pattern):
    return lambda weights: {name: tensor for name, tensor in weights.items() if not re.search(pattern, name)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"encoder.out.3.weight": torch.zeros(1)}, "there is no latent DDIM's MLP in it"),
        (without(r"norm"), "net_latent_use_norm=False"),
        (without(r"layers\.1\."), r"the layers \[0, 2, 3\]"),
        (lambda w: w | {"conds_mean": MEAN[None]}, "there is no tensor conds_std"),
        (lambda w: w | {"conds_mean": MEAN, "conds_std": STD * 0}, "not positive in some dimensions"),
    ],
)
def test_other_networks_are_one_line(official, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_official_latent(change(official.random_latent()))
    assert "\n" not in str(caught.value)
