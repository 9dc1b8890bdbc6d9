from itertools import islice

import pytest

from monai_diffae.engines import StepBatchSampler


def steps(sampler, count):
    return list(islice(iter(sampler), count))


def test_any_start_continues_the_same_stream():
    whole = steps(StepBatchSampler(23, 4, seed=3), 40)
    for start in (1, 4, 5, 17, 39):
        resumed = StepBatchSampler(23, 4, seed=3)
        resumed.start = start
        assert steps(resumed, 40 - start) == whole[start:]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_each_step_without_overlap_and_see_every_image_but_the_remainder(world_size):
    ranks = [StepBatchSampler(25, 4, seed=1, rank=r, world_size=world_size) for r in range(world_size)]
    per_epoch = len(ranks[0])
    streams = [steps(sampler, 2 * per_epoch) for sampler in ranks]
    for epoch in (0, 1):
        seen = [
            item
            for stream in streams
            for batch in stream[epoch * per_epoch : (epoch + 1) * per_epoch]
            for item in batch
        ]
        assert {e for e, _ in seen} == {epoch}
        indices = [i for _, i in seen]
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
