"""Goal R18: two processes draw what one process draws at the same global batch."""

import pytest
import torch

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.engines import AutoencoderPrepareBatch, StepBatchSampler

pytestmark = pytest.mark.goal(id="R18")


def drawn(step, batch_size, rank=0, world_size=1, seed=0, size=8):
    """Noise and timesteps of a process's part of a step."""
    sampler = StepBatchSampler(64, batch_size, seed, rank, world_size)
    prepare = AutoencoderPrepareBatch(DiffusionSchedule(timestep_sampling="logit_normal"))
    batch = {"image": torch.zeros(batch_size, 1, size, size), "draws": sampler.draws(step)}
    *_, inputs = prepare(batch, torch.device("cpu"))
    return inputs["noise"], inputs["timesteps"]


@pytest.mark.parametrize("size", [3, 8])  # torch fills tensors of fewer than 16 values in another way
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_processes_draw_together_what_one_draws(world_size, size):
    for step in (0, 5):
        alone = drawn(step, 6, size=size)
        parts = [drawn(step, 6 // world_size, rank, world_size, size=size) for rank in range(world_size)]
        for together, expected in zip(zip(*parts, strict=True), alone, strict=True):
            assert torch.equal(torch.cat(together), expected)


def test_each_seed_step_and_place_has_its_own_numbers():
    rows = torch.cat([drawn(step, 4, seed=seed)[0].flatten(1) for seed in (0, 1) for step in (0, 1)])
    assert len(rows.unique(dim=0)) == 16
    assert abs(float(torch.corrcoef(rows).triu(1).mean())) < 0.1
    assert not torch.equal(drawn(0, 64)[1], drawn(1, 64)[1])


def test_a_step_draws_the_same_whatever_was_drawn_before():
    first = drawn(3, 4)
    torch.manual_seed(5)
    drawn(2, 4)
    assert all(torch.equal(one, other) for one, other in zip(first, drawn(3, 4), strict=True))


def test_without_draws_in_the_batch_they_come_from_torchs_generator():
    prepare = AutoencoderPrepareBatch(DiffusionSchedule())
    torch.manual_seed(1)
    *_, inputs = prepare({"image": torch.zeros(2, 1, 4, 4)}, torch.device("cpu"))
    torch.manual_seed(1)
    assert torch.equal(inputs["noise"], torch.randn(2, 1, 4, 4))
