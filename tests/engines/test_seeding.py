import numpy as np
import torch
from ignite.engine import Engine

from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.engines import StepSeeding


def drawn(seed, rank=0, start=0, steps=4):
    values = []

    def draw(engine, batch):
        values.append((float(torch.rand(1)), float(np.random.rand())))

    engine = Engine(draw)
    StepSeeding(seed, rank).attach(engine)
    engine.state.iteration = start
    engine.run(range(steps), max_epochs=1, epoch_length=steps)
    return values


def test_what_a_step_draws_is_a_function_of_seed_rank_and_step():
    whole = drawn(0)
    assert drawn(0) == whole
    assert len(set(whole)) == 4
    assert drawn(1) != whole
    assert drawn(0, rank=1) != whole


def test_seeds_are_distinct_and_stable():
    assert seed_of(0, "noise", 1) == seed_of(0, "noise", 1)
    assert len({seed_of(s, r, i) for s in range(10) for r in range(10) for i in range(10)}) == 1000


def test_the_noise_of_an_image_is_standard_normal_and_its_own():
    noise = image_noise((1, 32, 32), 0, list(range(20)))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert torch.equal(image_noise((1, 32, 32), 0, [7])[0], noise[7])
