"""The predicted memory: what it is made of, and that it comes true."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.networks.nets import AutoencoderKL, resnet10

from monai_diffae.engines.memory import first_stage_memory, free_memory, inference_memory, training_memory
from monai_diffae.networks import EncoderAdapter, FirstStage, anisotropic_strides, build_autoencoder

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


def network(**changes):
    settings = {"base_channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "z_channels": 8} | changes
    return build_autoencoder(3, time_embed_channels=8, **settings)


def test_states_are_the_weights_their_average_and_two_moments():
    net = network()
    size = 4 * sum(p.numel() for p in net.parameters())
    assert training_memory(net, (1, 1, 16, 16, 16)).states == 4 * size
    assert inference_memory(net, (1, 1, 16, 16, 16)).states == size


def test_frozen_weights_count_once_and_keep_nothing():
    def net(frozen):
        encoder = resnet10(spatial_dims=3, n_input_channels=1, num_classes=8)
        return network(encoder=encoder, encoder_frozen=frozen)

    shape = (2, 1, 16, 16, 16)
    trained, frozen = (training_memory(net(frozen), shape) for frozen in (False, True))
    assert trained.states - frozen.states == 3 * 4 * sum(p.numel() for p in net(False).encoder.parameters())
    assert trained.kept > frozen.kept


def test_what_is_kept_is_what_autograd_keeps():
    net, x = network(), torch.rand(2, 1, 16, 16, 16)
    kept = {}

    def see(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        output = net(x, torch.tensor([1, 2]), x)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    expected = sum(size for place, size in kept.items() if place not in own)
    assert output.requires_grad
    assert training_memory(net, (2, 1, 16, 16, 16)).kept == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_keeps_less_and_a_batch_keeps_as_often_as_much(dtype):
    shape = (2, 1, 16, 16, 16)
    plain = training_memory(network(), shape, dtype=dtype)
    assert training_memory(network(use_checkpoint=True), shape, dtype=dtype).kept < 0.5 * plain.kept
    assert training_memory(network(), (4, *shape[1:]), dtype=dtype).kept == pytest.approx(2 * plain.kept, rel=0.1)
    assert inference_memory(network(), shape, dtype=dtype).total < plain.total


def test_bfloat16_takes_less():
    shape = (2, 1, 16, 16, 16)
    assert training_memory(network(), shape, dtype=torch.bfloat16).kept < 0.9 * training_memory(network(), shape).kept


def test_nothing_is_computed_or_drawn():
    net = network(dropout=0.5)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    before = torch.get_rng_state()
    training_memory(net, (1, 1, 16, 16, 16))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    with torch.device("meta"):
        on_meta = network()
    assert training_memory(on_meta, (64, 1, 512, 512, 512)).gib > 1000


def test_a_foreign_encoder_and_a_second_modality_are_counted():
    encoder = resnet10(spatial_dims=3, n_input_channels=2, num_classes=8)
    net = network(encoder=EncoderAdapter(encoder, in_channels=2, channels=2))
    assert training_memory(net, (2, 1, 16, 16, 16)).total > training_memory(network(), (2, 1, 16, 16, 16)).total


def first_stage():
    """Untrained: the scale of its latents is not measured."""
    autoencoder = AutoencoderKL(
        3, channels=(4, 8), attention_levels=(False, False), num_res_blocks=1, norm_num_groups=4, latent_channels=2,
        with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    return FirstStage(autoencoder)


def test_a_first_stage_takes_more_for_larger_volumes_and_to_decode():
    stage = first_stage()
    small, large = (first_stage_memory(stage, (1, *[size] * 3)) for size in (16, 32))
    assert large.passing == pytest.approx(8 * small.passing, rel=0.1)
    assert small.states == sum(4 * tensor.numel() for tensor in (*stage.parameters(), *stage.buffers()))
    encoding = first_stage_memory(stage, (1, 32, 32, 32), decodes=False)
    assert large.passing > encoding.passing > 4 * 4 * 32**3  # the first level's channels
    assert first_stage_memory(stage, (1, 32, 32, 32), dtype=torch.bfloat16).total < large.total
    assert large.kept == 0


def test_free_memory_of_this_machine():
    free = free_memory("cpu")
    assert free is None or 0 < free < 2**50
    assert free_memory("meta") is None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured with Linux's /proc")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("batch_size", "image_size", "use_checkpoint"),
    [(4, [32, 40, 32], False), (4, [32, 40, 32], True), (2, [48, 48, 48], False), (1, [64, 64, 64], True)],
)
def test_the_prediction_is_within_20_percent(batch_size, image_size, use_checkpoint, precision):
    configuration = {
        "batch_size": batch_size, "image_size": image_size, "use_checkpoint": use_checkpoint, "precision": precision
    }  # fmt: skip
    settings = {"base_channels": 16, "channel_mult": (1, 2, 4, 8), "z_channels": 128}
    strides = anisotropic_strides(image_size, [1.0] * 3, 4)
    with torch.device("meta"):
        net = build_autoencoder(
            3, num_res_blocks=1, time_embed_channels=128, use_checkpoint=use_checkpoint, strides=strides, **settings
        )
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    predicted = training_memory(net, (batch_size, 1, *image_size), dtype=dtype).gib
    command = [sys.executable, str(BENCHMARK), "--measure", json.dumps(configuration)]
    measured = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert 0.8 < predicted / measured < 1.2, f"{predicted:.3f} GiB predicted, {measured:.3f} GiB measured"
