"""A training that does not fit is refused before its first step."""

import logging

import pytest
import torch
from monai.networks.nets import AutoencoderKL

from monai_diffae.engines import workload
from monai_diffae.engines.memory import GIB, first_stage_memory, training_memory
from monai_diffae.engines.workload import Workload, check_memory, run_memory
from monai_diffae.errors import ConfigError, MachineError, find_diffae_error
from monai_diffae.networks import FirstStage, build_autoencoder


def network(**changes):
    settings = {"base_channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "z_channels": 8} | changes
    return build_autoencoder(3, time_embed_channels=8, **settings)


def test_large_validation_batches_count_for_a_run():
    shape = (1, 32, 32, 32)
    small = run_memory(network(use_checkpoint=True), Workload(shape, "cpu", "fp32", 1, 1, 0))
    large = run_memory(network(use_checkpoint=True), Workload(shape, "cpu", "fp32", 1, 64, 0))
    assert large.total > 2 * small.total
    assert run_memory(network(use_checkpoint=True), Workload(shape, "cpu", "fp32", 1, 1, 64)).total == large.total


def test_a_first_stage_counts_with_its_weights_the_images_and_its_fullest_moment():
    autoencoder = AutoencoderKL(
        3, channels=(64, 64), attention_levels=(False, False), num_res_blocks=1, norm_num_groups=4, latent_channels=2,
        with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    stage, net = FirstStage(autoencoder), network(in_channels=2)
    shape = (1, 32, 32, 32)
    alone = training_memory(net, (1, 2, 16, 16, 16))
    of_stage = first_stage_memory(stage, shape)
    whole = run_memory(net, Workload(shape, "cpu", "fp32", 1, 1, 1, stage))
    assert whole.states == alone.states + of_stage.states
    assert of_stage.passing > alone.kept + alone.passing
    assert whole.passing == of_stage.passing + 4 * 32**3
    many = run_memory(net, Workload(shape, "cpu", "fp32", 64, 1, 1, stage))
    assert many.kept == training_memory(net, (64, 2, 16, 16, 16)).kept


def checked(monkeypatch, share):
    """check_memory where the prediction is ``share`` of what is free."""
    arguments = (network(), Workload((1, 16, 16, 16), "cpu", "fp32", 2, 2, 0))
    free = int(run_memory(*arguments).total / share)
    monkeypatch.setattr(workload, "free_memory", lambda device: free)
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

    monkeypatch.setattr(workload, "free_memory", lambda device: 1)
    check_memory(network(encoder=Looking()), Workload((1, 16, 16, 16), "cpu", "fp32", 2, 2, 0))


def test_an_encoder_that_gives_another_z_sem_is_told_before_the_training(monkeypatch):
    monkeypatch.setattr(workload, "free_memory", lambda device: 1)
    encoder = torch.nn.Sequential(torch.nn.AdaptiveAvgPool3d(2), torch.nn.Flatten(), torch.nn.Linear(8, 5))
    with pytest.raises(ConfigError, match=r"the encoder Sequential gives \(2, 5\): z_channels=8 needs \(B, 8\)"):
        check_memory(network(encoder=encoder), Workload((1, 16, 16, 16), "cpu", "fp32", 2, 2, 0))


def test_a_training_that_cannot_fit_ends_before_any_scan_is_read(make_workflow, monkeypatch):
    monkeypatch.setattr(workload, "free_memory", lambda device: GIB // 100)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        make_workflow({"dataset_dir": "/gone", "check_memory": True})
    error = find_diffae_error(caught.value)
    assert isinstance(error, MachineError)
    assert "not enough memory" in str(error)
    make_workflow({"check_memory": False})
