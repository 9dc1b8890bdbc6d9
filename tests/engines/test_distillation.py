"""Training of a fast decoder: what each step learns, and that it learns."""

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from monai_diffae import engines
from monai_diffae.diffusion import DiffusionSchedule, Predictor, ddim
from monai_diffae.networks import DenoisingUNet

LEVELS = [999, 400, 100, -1]


class Pairs(Dataset[dict[str, Any]]):
    """Trajectories along a line from noise to images that are a function of the noise."""

    def __init__(self, count=8):
        noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        share = torch.tensor([1.0, 0.4, 0.1, 0.0]).view(1, 4, 1, 1, 1)
        self.trajectories = share * noise[:, None] + (1 - share) * noise[:, None].sign() * 0.5

    def __len__(self):
        return len(self.trajectories)

    def __getitem__(self, item):
        return {"trajectory": self.trajectories[item[1]], "z_sem": torch.zeros(4), "id": f"case-{item[1]}"}


def make_trainer(**settings):
    torch.manual_seed(0)
    network = DenoisingUNet(
        2, z_channels=4, base_channels=8, channel_mult=(1, 2), num_res_blocks=1, time_embed_channels=8
    )
    defaults = {"max_epochs": 1, "precision": "fp32", "channels_last": False, "device": torch.device("cpu")}
    return engines.DistillationTrainer(
        schedule=DiffusionSchedule(schedule="rectified_flow", prediction="v"), levels=LEVELS, network=network,
        train_data_loader=engines.training_loader(Pairs(), 4),
        optimizer=torch.optim.AdamW(network.parameters(), lr=3e-3, fused=True),
        loss_function=torch.nn.MSELoss(reduction="none"), **{**defaults, **settings},
    )  # fmt: skip


def test_each_training_step_trains_the_next_step_from_where_the_decoder_arrives():
    trainer = make_trainer()
    batch = {"trajectory": Pairs().trajectories, "z_sem": torch.zeros(8, 4)}
    schedule, network = trainer.schedule, trainer.network

    def reached(levels):
        return ddim(Predictor(lambda x, t: network(x, t, batch["z_sem"]), schedule), batch["trajectory"][:, 0], levels)

    for iteration, last in ((1, 1), (2, 2), (3, 3), (4, 1)):
        trainer.state.iteration = iteration
        expected = (reached(LEVELS[: last + 1]) - batch["trajectory"][:, last]).square().flatten(1).mean(dim=1)
        losses = trainer.image_losses(batch)
        torch.testing.assert_close(losses, expected)
        losses.sum().backward()
        assert any(p.grad is not None and p.grad.any() for p in network.parameters())
        network.zero_grad()


def test_the_loss_of_images_is_added_in_the_last_step_only():
    batch = {"trajectory": Pairs().trajectories, "z_sem": torch.zeros(8, 4)}
    plain, sharp = make_trainer(), make_trainer(image_loss=engines.ImageLoss(gradient_weight=0.1))
    for iteration in (1, 2, 3):
        plain.state.iteration = sharp.state.iteration = iteration
        more = sharp.image_losses(batch) - plain.image_losses(batch)
        assert (more > 0).all() if iteration == 3 else not more.any()


def test_it_learns_a_map_from_noise_to_images():
    trainer = make_trainer(max_epochs=12, precision="bf16", channels_last=True, image_loss=engines.ImageLoss(0.1))
    inferer = engines.FewStepInferer(trainer.schedule, LEVELS)

    def error():
        pairs = {"trajectory": Pairs().trajectories, "z_sem": torch.zeros(8, 4)}
        x_T, x_0, _, condition = engines.first_and_last(pairs)
        with torch.no_grad():
            return float((inferer(x_T, trainer.network, **condition) - x_0).square().mean())

    before = error()
    trainer.run()
    assert error() < before / 3


def test_gradients_at_each_scale():
    """A checkerboard has gradients at full size only, a step at all of them, an offset none."""
    rows = torch.arange(16) % 2
    board = (rows[:, None] == rows).float()[None, None]
    zeros = torch.zeros_like(board)
    assert engines.gradient_difference(board, zeros) == pytest.approx(1 / 3)  # 1 along both axes at one of three scales
    step = zeros.clone()
    step[..., 8:] = 1
    # along one of two axes: one of 15, 7 and 3 differences is 1
    assert engines.gradient_difference(step, zeros) == pytest.approx((1 / 15 + 1 / 7 + 1 / 3) / 6)
    assert engines.gradient_difference(board + 0.5, board) == 0
