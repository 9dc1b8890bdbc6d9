"""The predicted memory: what it is made of, what is refused because of it, and that it comes true."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.networks.nets import resnet10

from monai_diffae.engines import memory
from monai_diffae.engines.memory import GIB, check_memory, free_memory, inference_memory, run_memory, training_memory
from monai_diffae.errors import MachineError, find_diffae_error
from monai_diffae.networks import DiffusionAutoencoder, anisotropic_strides

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


def network(**changes):
    settings = {"base_channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "z_channels": 8} | changes
    return DiffusionAutoencoder(3, time_embed_channels=8, **settings)


def test_states_are_the_weights_their_average_and_two_moments():
    net = network()
    size = 4 * sum(p.numel() for p in net.parameters())
    assert training_memory(net, (1, 1, 16, 16, 16)).states == 4 * size
    assert inference_memory(net, (1, 1, 16, 16, 16)).states == size


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
    net = network(encoder=encoder, encoder_in_channels=2)
    assert training_memory(net, (2, 1, 16, 16, 16)).total > training_memory(network(), (2, 1, 16, 16, 16)).total


def test_large_validation_batches_count_for_a_run():
    shape = (1, 32, 32, 32)
    small = run_memory(network(use_checkpoint=True), shape, "cpu", "fp32", 1, 1, 0)
    large = run_memory(network(use_checkpoint=True), shape, "cpu", "fp32", 1, 64, 0)
    assert large.total > 2 * small.total
    assert run_memory(network(use_checkpoint=True), shape, "cpu", "fp32", 1, 1, 64).total == large.total


def test_free_memory_of_this_machine():
    free = free_memory("cpu")
    assert free is None or 0 < free < 2**50
    assert free_memory("meta") is None


def checked(monkeypatch, share):
    """check_memory where the prediction is ``share`` of what is free."""
    arguments = (network(), (1, 16, 16, 16), "cpu", "fp32", 2, 2, 0)
    free = int(run_memory(*arguments).total / share)
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    check_memory(*arguments)


def test_more_than_is_free_is_refused_in_one_line(monkeypatch):
    with pytest.raises(MachineError) as caught:
        checked(monkeypatch, 1.01)
    line = str(caught.value)
    for word in ("GiB are needed", "GiB are free", "batch_size", "use_checkpoint", "image_size", "monai-diffae plan"):
        assert word in line
    assert "\n" not in line


def test_nearly_all_that_is_free_is_warned_of_and_less_is_not(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "monai_diffae"):
        checked(monkeypatch, 0.79)
        assert not caplog.records
        checked(monkeypatch, 0.9)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "monai-diffae plan" in caplog.text


def test_a_network_that_looks_at_values_is_not_refused(monkeypatch):
    class Looking(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :8] * (2 if x.max() > 0 else 1)

    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    check_memory(network(encoder=Looking()), (1, 16, 16, 16), "cpu", "fp32", 2, 2, 0)


def test_a_training_that_cannot_fit_ends_before_any_scan_is_read(make_workflow, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: GIB // 100)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        make_workflow({"dataset_dir": "/gone"})
    error = find_diffae_error(caught.value)
    assert isinstance(error, MachineError)
    assert "not enough memory" in str(error)
    make_workflow({"check_memory": False})


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
        net = DiffusionAutoencoder(
            3, num_res_blocks=1, time_embed_channels=128, use_checkpoint=use_checkpoint, strides=strides, **settings
        )
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    predicted = training_memory(net, (batch_size, 1, *image_size), dtype=dtype).gib
    command = [sys.executable, str(BENCHMARK), "--measure", json.dumps(configuration)]
    measured = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert 0.8 < predicted / measured < 1.2, f"{predicted:.3f} GiB predicted, {measured:.3f} GiB measured"
