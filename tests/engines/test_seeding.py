import numpy as np
import torch
from ignite.engine import Engine

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
