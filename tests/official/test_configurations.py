"""Weights of the official code, of every configuration, give its numbers."""

import re
from pathlib import Path

import pytest
import torch
from official_numbers import T, official_numbers, official_weights

from monai_diffae.diffusion import DiffusionSchedule, Predictor, ddim
from monai_diffae.errors import ConfigError
from monai_diffae.official import load_official, load_official_latent
from monai_diffae.official.checkpoint_files import read_safetensors

PARITY = Path(__file__).parents[3] / "shared" / "parity"
needs_parity_files = pytest.mark.skipif(not PARITY.is_dir(), reason="no ../shared/parity with the official numbers")

CONFIGURATIONS = [
    "default", "three channels", "width 96", "widths 32, 96, 64", "first multiplier 2", "widths that fall",
    "fewer blocks in the encoder", "more blocks in the encoder", "one level with attention",
    "no attention but in the middle", "as many levels in the encoder", "an encoder that leaves out a row", "odd sizes",
]  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_z_and_eps_are_those_of_the_official_code(name):
    config, numbers = official_numbers(name)
    network = load_official(official_weights(name))
    x_t, z_sem, eps = numbers["x_t"], numbers["z_sem"], numbers["eps"]
    with torch.inference_mode():
        torch.testing.assert_close(network.encode(numbers["x0"]), z_sem, rtol=0, atol=1e-5)
        torch.testing.assert_close(network(x_t, T, z_sem), eps, rtol=0, atol=1e-5)
        assert not torch.allclose(network(x_t, T, z_sem * 0.9), eps, atol=1e-3)  # that z_sem is compared at all
    unet, encoder = network.unet.config, network.encoder.config
    for ours, theirs in (
        ("base_channels", "model_channels"),
        ("channel_mult",) * 2,
        ("z_channels", "enc_out_channels"),
    ):
        assert unet[ours] == config[theirs]
    assert unet["time_embed_channels"] == config["embed_channels"]
    assert encoder["num_res_blocks"] == config["enc_num_res_block"]
    assert encoder["channel_mult"] == config["enc_channel_mult"]


def test_the_encoders_blocks_are_asked_for_where_they_cannot_be_told():
    weights, (_, numbers) = official_weights("unclear blocks"), official_numbers("unclear blocks")
    with pytest.raises(
        ConfigError, match=r"net_enc_num_res_blocks .*: 1 or 2 residual blocks per level fit .*; choose"
    ):
        load_official(weights)
    with torch.inference_mode():
        z_sem = load_official(weights, {"net_enc_num_res_blocks": 1}).encode(numbers["x0"])
        torch.testing.assert_close(z_sem, numbers["z_sem"], rtol=0, atol=1e-5)
        assert load_official(weights, {"net_enc_num_res_blocks": 2}).encoder.config["channel_mult"] == [1, 1]


def without(weights, pattern):
    return {name: tensor for name, tensor in weights.items() if not re.search(pattern, name)}


def grown(weights, pattern, axis=0, times=2):
    """With the tensors whose names match ``times`` as large along an axis."""
    return {
        name: torch.cat([tensor] * times, dim=axis) if re.search(pattern, name) and tensor.ndim > axis else tensor
        for name, tensor in weights.items()
    }


ONE = torch.zeros(1)
OTHER_NETWORKS = {
    "other channels": (
        lambda w: grown(w, r"^(encoder\.)?input_blocks\.0\.", axis=1),
        r"out\.2\.\w+ too many or of another shape",
    ),
    "learned variance": (lambda w: grown(w, r"^out\.2\."), r"out\.2\.\w+ too many or of another shape"),
    "z scales and shifts": (lambda w: grown(w, r"\.cond_emb_layers\."), "too many or of another shape"),
    "3D": (lambda w: {n: t[..., None] if t.ndim == 4 else t for n, t in w.items()}, "they are 3D, the official"),
    "a missing tensor": (lambda w: without(w, r"^out\.0\.weight"), r"unet\.head\.0\.weight missing"),
    "NaN": (
        lambda w: w | {"out.0.weight": torch.full((32,), torch.nan)},
        r"^out\.0\.weight: .* not finite; download it again",
    ),
    "something else": (lambda _: {"fc.weight": ONE}, "input_blocks.0.0.weight is missing"),
}


@pytest.mark.parametrize(("change", "message"), OTHER_NETWORKS.values(), ids=OTHER_NETWORKS)
def test_another_network_is_refused_by_name_in_one_line(change, message):
    weights = change(official_weights("default"))
    with pytest.raises(ConfigError, match=message) as caught:
        load_official(weights)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_training_checkpoint_gives_its_ema_model(tmp_path, caplog):
    weights = official_weights("default")
    state = {f"ema_model.{key}": tensor for key, tensor in weights.items()}
    state |= {f"model.{key}": torch.zeros_like(tensor) for key, tensor in weights.items()}
    state |= {"x_T": torch.zeros(1), "ema_model.latent_net.layers.0.linear.weight": torch.zeros(1)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    network = load_official(tmp_path / "last.ckpt")
    assert caplog.text == ""
    expected = load_official(weights)
    assert "no ema_model in it: its weights are used, which may not be averaged" in caplog.text
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in network.state_dict().items())


LONG = [("official_1ch_32px", 20), ("official_3ch_64px", 10)]
RUNS = [("official_1ch_32px", 10), *(pytest.param(*run, marks=pytest.mark.slow) for run in LONG)]
CLIP = {"clip": (-1.0, 1.0), "noclip": None}


def assert_close(actual, expected, relative_to_largest):
    assert float((actual - expected).abs().max() / expected.abs().max()) < relative_to_largest


@needs_parity_files
@pytest.mark.parametrize(("name", "steps"), RUNS)
@pytest.mark.parametrize("clip", CLIP)
@torch.no_grad()
def test_trajectories(name, steps, clip):
    tensors, _ = read_safetensors(PARITY / f"{name}.safetensors")
    network = load_official(PARITY / f"{name}.safetensors")
    schedule = DiffusionSchedule(prediction="eps", spacing="leading")

    def denoise(x, t):
        return network(x, t, tensors["z_sem"])

    decoded = ddim(Predictor(denoise, schedule, CLIP[clip]), tensors["x_t"], schedule.decoding_levels(steps))
    assert_close(decoded, tensors[f"ddim{steps}_{clip}_decoded_from_x_t"], 1e-3)
    x_T = ddim(Predictor(denoise, schedule, CLIP[clip]), tensors["x0"], schedule.paper_inversion_levels(steps))
    assert_close(x_T, tensors[f"ddim{steps}_{clip}_x_T"], 1e-3)


# -- the latent DDIM ---------------------------------------------------------------------------------------------------

MEAN, STD = torch.arange(16.0) / 10, torch.linspace(0.5, 2, 16)


@needs_parity_files
def test_a_trajectory_of_the_latent_ddim():
    tensors, _ = read_safetensors(PARITY / "official_latent_mlp.safetensors")
    network = load_official_latent(PARITY / "official_latent_mlp.safetensors")
    schedule = DiffusionSchedule(prediction="eps", spacing="leading", beta_start=0.008, beta_end=0.008)
    with torch.no_grad():
        z = ddim(Predictor(network, schedule), tensors["z_t"], schedule.decoding_levels(20))
    assert_close(z, tensors["ddim20_noclip_decoded_from_z_t"], 1e-5)


@pytest.mark.parametrize("name", ["latent", "latent without skips", "deep latent"])
def test_the_latent_ddim_has_the_eps_of_the_official_code(name):
    config, numbers = official_numbers(name)
    network = load_official_latent(official_weights(name))
    assert network.config["skip_layers"] == config["skip_layers"]
    with torch.inference_mode():
        torch.testing.assert_close(network(numbers["z_t"], T), numbers["eps"], rtol=0, atol=1e-5)


def checkpoint():
    """What the official latent training saves: both models, each with autoencoder and MLP, and the statistics."""
    state = {}
    for prefix, seed in (("model.", 0), ("ema_model.", 1)):
        state |= {prefix + name: tensor for name, tensor in official_weights("with a latent DDIM", seed).items()}
        state |= {f"{prefix}latent_net.{name}": tensor for name, tensor in official_weights("latent", seed).items()}
    return state | {"x_T": torch.zeros(1, 1, 32, 32), "conds_mean": MEAN[None], "conds_std": STD[None]}


def test_the_averaged_network_of_a_checkpoint_with_its_statistics(tmp_path):
    state = checkpoint()
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    network = load_official_latent(tmp_path / "last.ckpt")
    assert torch.equal(network.head.weight, state["ema_model.latent_net.layers.3.linear.weight"])
    assert torch.equal(network.z_mean, MEAN)
    assert torch.equal(network.z_std, STD)
    assert load_official(tmp_path / "last.ckpt").z_channels == 16  # the autoencoder of the same file
    only_model = {name: tensor for name, tensor in state.items() if not name.startswith("ema_model.latent_net.")}
    network = load_official_latent(only_model)
    assert torch.equal(network.head.weight, state["model.latent_net.layers.3.linear.weight"])


def test_the_mlp_alone_under_any_prefix_and_names_that_the_code_does_not_use():
    weights = official_weights("latent")
    expected = load_official_latent(weights).state_dict()
    assert torch.equal(expected["head.bias"], weights["layers.3.linear.bias"])
    once = {name: tensor for name, tensor in weights.items() if "cond_layers" not in name}
    # older versions of the official code have a time projection in the last layer too, and never call it
    older = weights | {"layers.3.linear_emb.weight": torch.zeros(16, 16)}
    prefixed = [{prefix + n: t for n, t in weights.items()} for prefix in ("ema_model.", "latent_net.")]
    for state in (once, older, *prefixed):
        loaded = load_official_latent(state).state_dict()
        assert all(torch.equal(t, expected[n]) or t.isnan().all() for n, t in loaded.items())


def test_statistics_of_the_official_file_come_first(tmp_path):
    statistics = {"conds": torch.zeros(5, 16), "conds_mean": MEAN + 1, "conds_std": STD.double()}
    torch.save(statistics, tmp_path / "latent.pkl")
    for given in (tmp_path / "latent.pkl", str(tmp_path / "latent.pkl"), statistics):
        network = load_official_latent(checkpoint(), statistics=given)
        assert torch.equal(network.z_mean, MEAN + 1)
    torch.testing.assert_close(network.denormalise(torch.zeros(1, 16))[0], MEAN + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"encoder.out.3.weight": torch.zeros(1)}, "there is no latent DDIM's MLP in it"),
        (lambda w: without(w, r"norm"), "net_latent_use_norm=False"),
        (lambda w: without(w, r"layers\.1\."), r"the layers \[0, 2, 3\]"),
        (lambda w: w | {"conds_mean": MEAN[None]}, "there is no tensor conds_std"),
        (lambda w: w | {"conds_mean": MEAN, "conds_std": STD * 0}, "not positive in some dimensions"),
    ],
)
def test_other_latent_networks_are_one_line(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_official_latent(change(official_weights("latent")))
    assert "\n" not in str(caught.value)
