import pytest
import torch
from torch import nn

from monai_diffae import DiffusionAutoencoderInferer, DiffusionSchedule
from monai_diffae.engines import DiffusionEvaluator, FixedPrepareBatch, validation_loader
from monai_diffae.metrics import ValidationLoss, ZSemUsage
from monai_diffae.networks import build_autoencoder

IMAGES = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


class Deaf(nn.Module):
    """Draws without listening to z_sem."""

    def encode(self, x):
        return x.flatten(1)[:, :4]

    def forward(self, x, t, context):
        return x


class Copier(nn.Module):
    """z_sem is the image itself, and the network knows the noise schedule: no error with the right z_sem."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def encode(self, x):
        return x.flatten(1)

    def forward(self, x, t, context):
        x0 = context.view_as(x)
        alpha, sigma = self.schedule.coefficients(t, x)
        return self.schedule.target(x0, (x - alpha * x0) / sigma, t)


def network():
    torch.manual_seed(0)
    net = build_autoencoder(2, 1, base_channels=4, channel_mult=(1, 2), num_res_blocks=1, z_channels=4, dropout=0.5)
    for p in net.parameters():
        if p.abs().max() == 0:
            nn.init.normal_(p, std=0.2)
    return net


def evaluator(net, batch_size=3, schedule=None):
    schedule = schedule or DiffusionSchedule(schedule="rectified_flow", prediction="v")
    data = [{"image": image, "id": str(i), "index": i} for i, image in enumerate(IMAGES)]
    return DiffusionEvaluator(
        schedule=schedule, precision="fp32", device=torch.device("cpu"), network=net,
        val_data_loader=validation_loader(data, batch_size), inferer=DiffusionAutoencoderInferer(schedule),
        prepare_batch=FixedPrepareBatch(schedule, len(data)), key_val_metric={"loss": ValidationLoss()},
        additional_metrics={"other": ValidationLoss("loss_other"), "z_sem_usage": ZSemUsage()},
    )  # fmt: skip


def metrics(engine):
    engine.run()
    return dict(engine.state.metrics)


def test_two_validations_of_the_same_weights_give_the_same_numbers_whatever_was_drawn_before():
    engine = evaluator(network())
    first = metrics(engine)
    torch.manual_seed(99)
    torch.rand(10)
    assert metrics(engine) == first
    assert metrics(evaluator(network())) == first


@pytest.mark.parametrize("batch_size", [1, 7])
def test_every_image_is_compared_with_the_z_sem_of_another_whatever_the_batch_size(batch_size):
    assert metrics(evaluator(network(), batch_size)) == pytest.approx(metrics(evaluator(network(), 3)), rel=1e-5)
    assert metrics(evaluator(Deaf(), batch_size))["z_sem_usage"] == 1  # this network ignores z_sem
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v")
    found = metrics(evaluator(Copier(schedule), batch_size, schedule))
    assert found["loss"] < 1e-6
    assert found["other"] > 0.1
