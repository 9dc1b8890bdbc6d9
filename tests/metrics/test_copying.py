import pytest
import torch
from ignite.engine import Engine

from monai_diffae.latents import copying_ratio
from monai_diffae.metrics import CopyingRatio


@pytest.fixture
def vectors():
    return torch.randn(3, 300, 5, generator=torch.Generator().manual_seed(0)).unbind()


def test_the_metric_takes_held_out_z_from_the_evaluators_batches(vectors):
    train, held_out, samples = vectors
    metric = CopyingRatio(lambda count: samples[:count], train, num_samples=40)
    engine = Engine(lambda _, batch: {"image": batch})
    metric.attach(engine, "copying_ratio")
    for _ in range(2):  # what an earlier validation saw is forgotten
        engine.run(held_out.split(64))
        assert engine.state.metrics["copying_ratio"] == pytest.approx(copying_ratio(samples[:40], train, held_out))
