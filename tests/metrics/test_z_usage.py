import pytest
import torch
from torch import nn

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.metrics.z_usage import LEAST_USAGE, level_losses, warn_if_unused


class Knowing(nn.Module):
    """Answers with the z_sem that it is given, spread over the image."""

    def forward(self, x, t, z_sem):
        return z_sem[:, :1, None, None].expand_as(x)


def test_the_loss_is_the_targets_with_each_code_on_the_same_noisy_image():
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
