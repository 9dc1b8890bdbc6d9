"""Metrics that evaluators of a training compute."""

import math

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.latents import copying_ratio
from monai_diffae.metrics import CopyingRatio, ValidationLoss, ZSemUsage
from monai_diffae.metrics.z_usage import LEAST_USAGE, level_losses, warn_if_unused

OWN, OTHER = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]), torch.tensor([2.0, 2.0, 6.0, 4.0, 26.0])


@pytest.mark.parametrize("cuts", [[5], [2, 3], [4, 1]])
def test_every_image_counts_once_whatever_the_batches(cuts):
    batches = list(zip(OWN.split(cuts), OTHER.split(cuts), strict=True))
    evaluator = Engine(lambda _, batch: {"loss": batch[0], "loss_other": batch[1]})
    ValidationLoss().attach(evaluator, "loss")
    ValidationLoss("loss_other").attach(evaluator, "loss_other")
    ZSemUsage().attach(evaluator, "usage")
    for _ in range(2):  # the second run starts from nothing
        metrics = evaluator.run(batches).metrics
        assert metrics == pytest.approx({"loss": 4.0, "loss_other": 8.0, "usage": 2.0})


def test_the_usage_of_z_sem_is_not_measured_with_one_image():
    """Its z_sem would be compared with itself, and the usage be 1, as of a decoder that ignores z_sem."""
    assert math.isnan(ValidationLoss().compute())
    usage = ZSemUsage()
    usage.update((torch.tensor([1.0]), torch.tensor([1.0])))
    assert math.isnan(usage.compute())
    usage.update((torch.tensor([1.0]), torch.tensor([3.0])))
    assert usage.compute() == 2.0


class Knowing(nn.Module):
    """Answers with the z_sem that it is given, spread over the image."""

    def forward(self, x, t, z_sem):
        return z_sem[:, :1, None, None].expand_as(x)


def test_the_loss_of_a_level_is_the_targets_with_each_code_on_the_same_noisy_image():
    x0, noise = torch.zeros(3, 1, 4, 4), torch.ones(3, 1, 4, 4)
    inferer = DiffusionAutoencoderInferer(DiffusionSchedule(prediction="eps"))
    codes = {"right": torch.ones(3, 2), "wrong": torch.tensor([[1.0], [2.0], [3.0]])}
    losses = level_losses(x0, codes, Knowing(), inferer, 700, noise)
    assert losses["right"].tolist() == [0, 0, 0]
    assert losses["wrong"].tolist() == [0, 1, 4]


@pytest.mark.parametrize(("usage", "is_bad"), [(0.98, True), (1.099, True), (LEAST_USAGE, False), (None, False)])
def test_below_a_usage_of_1_1_one_line_warns(caplog, usage, is_bad):
    warn_if_unused(usage)
    lines = [record.message for record in caplog.records]
    assert len(lines) == is_bad
    assert all(line.startswith(f"z_sem_usage {usage:.3f}: the decoder hardly uses z_sem") for line in lines)


@pytest.fixture
def vectors():
    return torch.randn(3, 300, 5, generator=torch.Generator().manual_seed(0)).unbind()


def attached(samples, train):
    engine = Engine(lambda _, batch: {"image": batch})
    CopyingRatio(lambda count: samples[:count], train, num_samples=40).attach(engine, "copying_ratio")
    return engine


def test_the_copying_ratio_takes_held_out_z_from_the_evaluators_batches(vectors):
    train, held_out, samples = vectors
    engine = attached(samples, train)
    for _ in range(2):  # what an earlier validation saw is forgotten
        engine.run(held_out.split(64))
        assert engine.state.metrics["copying_ratio"] == pytest.approx(copying_ratio(samples[:40], train, held_out))


def test_what_has_no_copying_ratio_is_nan_with_one_warning_and_ends_no_training(vectors, caplog):
    train, held_out, samples = vectors
    for engine, batches in ((attached(samples, train), train), (attached(samples * math.inf, train), held_out)):
        caplog.clear()
        for _ in range(3):
            engine.run(batches.split(64))
            assert math.isnan(engine.state.metrics["copying_ratio"])
        assert [message[:20] for message in caplog.messages] == ["copying_ratio is nan"]
