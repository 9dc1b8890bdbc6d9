from types import SimpleNamespace

import pytest
import torch
from torch import nn

from monai_diffae.bundle import TrainingDescription
from monai_diffae.engines.optimization import learning_rate_schedule
from monai_diffae.handlers import EMA, CheckpointKeeper, Validation
from monai_diffae.handlers.resumed_optimizer import set_rates, set_schedule_back


def optimizer_with_schedule(rate, position):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=rate, weight_decay=0.1)
    schedule = learning_rate_schedule(optimizer, "cosine", total_steps=10)
    for _ in range(position):
        optimizer.step()
        schedule.step()
    return optimizer, schedule


def test_another_rate_is_used_from_the_position_of_the_schedule_on_and_a_rate_of_zero_can_be_raised():
    resumed, schedule = optimizer_with_schedule(1.0, 4)
    set_rates(resumed, schedule, [(0.1, 0.0)])
    expected, expected_schedule = optimizer_with_schedule(0.1, 4)
    assert resumed.param_groups[0]["weight_decay"] == 0.0
    for _ in range(3):
        assert resumed.param_groups[0]["lr"] == pytest.approx(expected.param_groups[0]["lr"])
        for each in (schedule, expected_schedule):
            each.step()
    optimizer, schedule = optimizer_with_schedule(0.0, 0)
    set_rates(optimizer, schedule, [(0.1, 0.0)])
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("first", [4, 9])
def test_a_schedule_is_set_back_to_any_step(first):
    optimizer, schedule = optimizer_with_schedule(1.0, 9)
    set_schedule_back(schedule, 9, first)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(
        optimizer_with_schedule(1.0, first)[0].param_groups[0]["lr"]
    )


@pytest.mark.parametrize("then", [torch.contiguous_format, torch.channels_last])
def test_moments_saved_in_another_memory_format_meet_their_own_weights(tmp_path, then):
    def convolution(memory_format, fused):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 5, 3).to(memory_format=memory_format)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return layer, CheckpointKeeper(
            tmp_path, layer, EMA(layer), optimizer, scheduler, Validation(validator=None), TrainingDescription({"a": 1})
        )

    def step(layer, kept, number):
        for i, p in enumerate(layer.parameters()):
            gradient = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * number + i))
            p.grad = torch.empty_like(p).copy_(gradient)  # laid out like the weights, as autograd does
        kept.parts["optimizer"].step()

    first = torch.channels_last if then is torch.contiguous_format else torch.contiguous_format
    layer, kept = convolution(first, fused=True)
    step(layer, kept, 0)
    engine = SimpleNamespace(
        state=SimpleNamespace(iteration=1, epoch_length=5, max_epochs=2, epoch=0),
        grad_scaler=torch.amp.GradScaler("cpu"),
    )
    kept.parts["scaler"] = engine.grad_scaler
    kept.save(engine)
    step(layer, kept, 1)
    resumed, kept = convolution(then, fused=True)
    kept._start(engine)
    step(resumed, kept, 1)
    torch.testing.assert_close(resumed.weight, layer.weight)
