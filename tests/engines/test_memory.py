"""The predicted memory and speed of a training, and that a training that cannot fit is refused."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from complaints import complaint
from monai.networks.nets import resnet10
from tiny_bundles import tiny_kl

from monai_diffae.engines import memory
from monai_diffae.engines.precision import autocast
from monai_diffae.errors import MachineError
from monai_diffae.networks import FirstStage, anisotropic_strides, build_autoencoder

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"
SHAPE = (2, 1, 16, 16, 16)


def network(**changes):
    settings = {"base_channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "z_channels": 8} | changes
    return build_autoencoder(3, time_embed_channels=8, **settings)


def test_states_are_the_weights_their_average_and_two_moments_and_frozen_weights_count_once_and_keep_nothing():
    def net(frozen):
        encoder = resnet10(spatial_dims=3, n_input_channels=1, num_classes=8)
        return network(encoder=encoder, encoder_frozen=frozen)

    trained, frozen = (memory.training_memory(net(frozen), SHAPE) for frozen in (False, True))
    size = sum(4 * p.numel() for p in network().parameters())
    assert memory.training_memory(network(), SHAPE).states == 4 * size
    assert memory.inference_memory(network(), SHAPE).states == size
    assert trained.states - frozen.states == 3 * 4 * sum(p.numel() for p in net(False).encoder.parameters())
    assert trained.kept > frozen.kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_what_autograd_keeps(dtype):
    last = torch.channels_last_3d
    net, x = network().to(memory_format=last), torch.rand(SHAPE).to(memory_format=last)
    kept = {}

    def see(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor), autocast("cpu", dtype):
        output = net(x, torch.tensor([1, 2]), x)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    expected = sum(size for place, size in kept.items() if place not in weights)
    assert output.requires_grad
    assert memory.training_memory(net, SHAPE, dtype=dtype).kept == pytest.approx(expected, rel=0.05)


def test_a_gpu_keeps_the_inputs_of_group_norm_in_float32_and_a_cpu_in_bfloat16():
    cpu, gpu = (memory.training_memory(network(), SHAPE, device, torch.bfloat16).kept for device in ("cpu", "cuda"))
    assert cpu < 0.9 * gpu


def test_a_first_stage_takes_more_for_larger_volumes_and_to_decode():
    stage = FirstStage(tiny_kl(latent_channels=2))  # untrained: the scale of its latents is not measured
    small, large = (memory.first_stage_memory(stage, (1, *[size] * 3)) for size in (16, 32))
    assert large.transient == pytest.approx(8 * small.transient, rel=0.1)
    assert small.states == sum(4 * tensor.numel() for tensor in (*stage.parameters(), *stage.buffers()))
    encoding = memory.first_stage_memory(stage, (1, 32, 32, 32), decodes=False)
    assert large.transient > encoding.transient > 4 * 4 * 32**3  # the first level's channels
    assert memory.first_stage_memory(stage, (1, 32, 32, 32), dtype=torch.bfloat16).total < large.total
    assert large.kept == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured with Linux's /proc")
@pytest.mark.parametrize(
    ("batch_size", "image_size", "use_checkpoint", "precision"),
    [
        (4, [32, 40, 32], False, "fp32"),
        (4, [32, 40, 32], True, "bf16"),
        (2, [48, 48, 48], False, "bf16"),
        (1, [64, 64, 64], True, "fp32"),
    ],
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
    predicted = memory.training_memory(net, (batch_size, 1, *image_size), dtype=dtype).gib
    command = [sys.executable, str(BENCHMARK), "--measure", json.dumps(configuration)]
    measured = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert 0.8 < predicted / measured < 1.2, f"{predicted:.3f} GiB predicted, {measured:.3f} GiB measured"


WORKLOAD = memory.Workload((1, 16, 16, 16), "cpu", "fp32", 2, 2, 0)


def test_more_than_is_free_is_refused_and_nearly_all_of_it_is_warned_of(caplog):
    needed = memory.run_memory(network(), WORKLOAD).total

    def check(share):
        memory.check_memory(network(), WORKLOAD, int(needed / share))

    with pytest.raises(MachineError, match="GiB are needed.*GiB are free.*monai-diffae plan") as caught:
        check(1.01)
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING, "monai_diffae"):
        check(0.79)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        check(0.9)
    assert [record.levelname for record in caplog.records if record.levelno >= logging.WARNING] == ["WARNING"]
    assert "monai-diffae plan" in caplog.text


def test_a_training_that_cannot_fit_ends_before_any_scan_is_read(make_workflow):
    settings = {"dataset_dir": "/gone", "check_memory": True, "batch_size": 10**9}
    assert "not enough memory" in complaint(make_workflow, settings)
