import math

import pytest
import torch
from ignite.engine import Engine

from monai_diffae.metrics import ValidationLoss, ZSemUsage

OWN, OTHER = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]), torch.tensor([2.0, 2.0, 6.0, 4.0, 26.0])


@pytest.mark.parametrize("cuts", [[5], [2, 3], [4, 1]])
def test_every_image_counts_once_whatever_the_batches(cuts):
    batches = list(zip(OWN.split(cuts), OTHER.split(cuts), strict=True))
    evaluator = Engine(lambda _, batch: {"loss": batch[0], "loss_other": batch[1]})
    ValidationLoss().attach(evaluator, "loss")
    ValidationLoss("loss_other").attach(evaluator, "loss_other")
    ZSemUsage().attach(evaluator, "usage")
    for _ in range(2):  # the second run starts from nothing
        metrics = evaluator.run(batches).metrics
        assert metrics == pytest.approx({"loss": 4.0, "loss_other": 8.0, "usage": 2.0})


def test_nothing_seen_is_no_number():
    assert torch.isnan(torch.tensor(ValidationLoss().compute()))


def test_the_usage_of_z_sem_is_not_measured_with_one_image() -> None:
    """Its z_sem would be compared with itself, and the usage be 1, as of a decoder that ignores z_sem."""
    usage = ZSemUsage()
    usage.update((torch.tensor([1.0]), torch.tensor([1.0])))
    assert math.isnan(usage.compute())
    usage.update((torch.tensor([1.0]), torch.tensor([3.0])))
    assert usage.compute() == 2.0
