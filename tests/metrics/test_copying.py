import pytest
import torch
from ignite.engine import Engine
from scipy.spatial import cKDTree

from monai_diffae.metrics import CopyingRatio, copying_ratio


@pytest.fixture
def vectors():
    return torch.randn(3, 300, 5, generator=torch.Generator().manual_seed(0)).unbind()


def test_it_is_the_ratio_of_median_distances_to_the_nearest_neighbour(vectors):
    train, held_out, samples = vectors
    tree = cKDTree(train.numpy())
    medians = [torch.from_numpy(tree.query(z.numpy())[0]).median() for z in (samples, held_out)]
    assert copying_ratio(samples, held_out, train) == pytest.approx(float(medians[0] / medians[1]), rel=1e-5)


def test_new_samples_score_about_one_and_copies_zero(vectors):
    train, held_out, samples = vectors
    assert 0.9 < copying_ratio(samples, held_out, train) < 1.1
    assert copying_ratio(train[:50], held_out, train) == pytest.approx(0, abs=1e-3)


def test_the_metric_takes_held_out_z_from_the_evaluators_batches(vectors):
    train, held_out, samples = vectors
    metric = CopyingRatio(lambda count: samples[:count], train, num_samples=40)
    engine = Engine(lambda _, batch: {"image": batch})
    metric.attach(engine, "copying_ratio")
    for _ in range(2):  # what an earlier validation saw is forgotten
        engine.run(held_out.split(64))
        assert engine.state.metrics["copying_ratio"] == pytest.approx(copying_ratio(samples[:40], held_out, train))
