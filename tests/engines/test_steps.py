"""What a step trains with and draws is a function of seed, rank and step."""

from itertools import islice

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.data import MetaTensor
from torch.nn.parallel import DistributedDataParallel

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.engines import AutoencoderPrepareBatch, StepBatchSampler, StepSeeding, distributed
from monai_diffae.engines.trainer import lay_out, memory_format
from monai_diffae.errors import ConfigError


def steps(sampler, count):
    return list(islice(iter(sampler), count))


def test_any_start_continues_the_same_stream():
    whole = steps(StepBatchSampler(23, 4, seed=3), 40)
    for start in (1, 4, 5, 17, 39):
        resumed = StepBatchSampler(23, 4, seed=3)
        resumed.start = start
        assert steps(resumed, 40 - start) == whole[start:]


def test_ranks_share_each_step_without_overlap_and_see_every_image_but_the_remainder():
    world_size = 3
    ranks = [StepBatchSampler(25, 4, seed=1, rank=r, world_size=world_size) for r in range(world_size)]
    per_epoch = len(ranks[0])
    streams = [steps(sampler, 2 * per_epoch) for sampler in ranks]
    for epoch in (0, 1):
        part = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        items = [item for stream in streams for batch in stream[part] for item in batch]
        assert {e for e, _ in items} == {epoch}
        indices = [i for _, i in items]
        assert len(indices) == len(set(indices)) == 25 // (4 * world_size) * 4 * world_size


def test_epochs_and_seeds_differ_in_order():
    first = [i for b in steps(StepBatchSampler(20, 4, seed=0), 5) for _, i in b]
    other_seed = [i for b in steps(StepBatchSampler(20, 4, seed=1), 5) for _, i in b]
    two_epochs = [i for b in steps(StepBatchSampler(20, 4, seed=0), 10) for _, i in b]
    assert first != other_seed
    assert two_epochs[:20] != two_epochs[20:]
    assert sorted(two_epochs[20:]) == list(range(20))


def test_a_batch_larger_than_the_data_shrinks():
    sampler = StepBatchSampler(3, 32)
    assert len(sampler) == 1
    assert sorted(i for _, i in steps(sampler, 1)[0]) == [0, 1, 2]


def test_the_generators_of_a_step_are_seeded_by_seed_rank_and_step():
    def drawn(seed, rank=0, start=0, steps=4):
        values = []
        engine = Engine(lambda engine, batch: values.append((float(torch.rand(1)), float(np.random.rand()))))
        StepSeeding(seed, rank).attach(engine)
        engine.state.iteration = start
        engine.run(range(steps), max_epochs=1, epoch_length=steps)
        return values

    whole = drawn(0)
    assert drawn(0) == whole
    assert len(set(whole)) == 4
    assert drawn(1) != whole
    assert drawn(0, rank=1) != whole


def noise_and_timesteps(step, batch_size, rank=0, world_size=1, seed=0, size=8):
    """Those of a process's part of a step."""
    sampler = StepBatchSampler(64, batch_size, seed, rank, world_size)
    prepare = AutoencoderPrepareBatch(DiffusionSchedule(timestep_sampling="logit_normal"))
    batch = {"image": torch.zeros(batch_size, 1, size, size), "draws": sampler.draws(step)}
    *_, inputs = prepare(batch, torch.device("cpu"))
    return inputs["noise"], inputs["timesteps"]


def test_images_of_monais_datasets_become_plain_tensors_as_a_checkpoint_may_hold_their_loss():
    batch = {"image": MetaTensor(torch.zeros(2, 1, 4, 4))}
    images, target, _, inputs = AutoencoderPrepareBatch(DiffusionSchedule())(batch, torch.device("cpu"))
    assert {type(each) for each in (images, target, *inputs.values())} == {torch.Tensor}


@pytest.mark.goal(id="R18")
@pytest.mark.parametrize("size", [3, 8])  # torch fills tensors of fewer than 16 values in another way
def test_processes_draw_together_what_one_draws(size):
    world_size = 6
    for step in (0, 5):
        alone = noise_and_timesteps(step, 6, size=size)
        parts = [noise_and_timesteps(step, 6 // world_size, r, world_size, size=size) for r in range(world_size)]
        for together, expected in zip(zip(*parts, strict=True), alone, strict=True):
            assert torch.equal(torch.cat(together), expected)


def test_each_seed_step_and_place_has_its_own_numbers_whatever_was_drawn_before():
    rows = torch.cat([noise_and_timesteps(step, 4, seed=seed)[0].flatten(1) for seed in (0, 1) for step in (0, 1)])
    assert len(rows.unique(dim=0)) == 16
    assert abs(float(torch.corrcoef(rows).triu(1).mean())) < 0.1
    assert not torch.equal(noise_and_timesteps(0, 64)[1], noise_and_timesteps(1, 64)[1])
    first = noise_and_timesteps(3, 4)
    torch.manual_seed(5)
    assert all(torch.equal(one, other) for one, other in zip(first, noise_and_timesteps(3, 4), strict=True))


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.goal(id="R18")
def test_a_wrapped_network_keeps_its_memory_format(group):
    network = torch.nn.Conv2d(4, 8, 3)
    late = DistributedDataParallel(torch.nn.Conv2d(4, 8, 3))
    wrapped = distributed(network, "cpu")
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    lay_out(wrapped, memory_format(wrapped, channels_last=True))
    with pytest.raises(ConfigError, match="would mix up the gradients"):
        lay_out(late, torch.channels_last)
    assert memory_format(torch.nn.Conv3d(1, 1, 3), channels_last=True) == torch.channels_last_3d
    assert memory_format(torch.nn.Conv2d(1, 1, 3), channels_last=False) == torch.contiguous_format
    both = torch.nn.ModuleList([torch.nn.Conv2d(1, 1, 3), torch.nn.Conv3d(1, 1, 3)])  # such as a PlanarAdapter's
    lay_out(both, memory_format(both, channels_last=True))
