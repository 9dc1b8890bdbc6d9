import logging
import math

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


@pytest.mark.parametrize("case", ["held-out cases of the training set", "samples that are not finite"])
def test_what_has_no_ratio_is_nan_and_said_once_and_ends_no_training(vectors, caplog, case):
    train, held_out, samples = vectors
    if case.startswith("held-out"):
        held_out = train
    else:
        samples = samples * float("inf")
    metric = CopyingRatio(lambda count: samples[:count], train, num_samples=40)
    engine = Engine(lambda _, batch: {"image": batch})
    metric.attach(engine, "copying_ratio")
    with caplog.at_level(logging.WARNING, logger="monai_diffae"):
        for _ in range(3):
            engine.run(held_out.split(64))
            assert math.isnan(engine.state.metrics["copying_ratio"])
    assert len(caplog.records) == 1
    assert caplog.text.count("copying_ratio is nan: ") == 1
