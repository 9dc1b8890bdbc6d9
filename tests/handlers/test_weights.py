"""The average of the weights, weights that a federated server replaced, and the optimiser of a resumed training."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import vector_to_parameters

from monai_diffae.bundle import TrainingDescription
from monai_diffae.engines import learning_rate_schedule
from monai_diffae.handlers import EMA, CheckpointKeeper, Validation
from monai_diffae.handlers.weights import WeightMonitor, set_rates, set_schedule_back


def test_the_average_follows_its_warm_up_equation():
    layer = nn.Linear(3, 2)
    ema = EMA(layer, decay=0.5)
    expected = layer.weight.detach().clone()
    for n in range(30):
        with torch.no_grad():
            layer.weight.normal_()
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
        torch.testing.assert_close(ema.network.weight, expected)


def test_buffers_are_copied_and_the_network_is_left_alone():
    layer = nn.BatchNorm1d(2)
    ema = EMA(layer)
    layer(torch.randn(8, 2) + 3)
    before = layer.weight.detach().clone()
    ema.update()
    assert torch.equal(ema.network.running_mean, layer.running_mean)
    assert ema.network.num_batches_tracked == 1
    assert torch.equal(layer.weight, before)
    assert not ema.network.training
    assert not any(p.requires_grad for p in ema.network.parameters())


def test_frozen_weights_are_shared_and_left_alone():
    network = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    ema = EMA(network, decay=0.5)
    assert ema.network[0].weight is network[0].weight
    before = [parameter.clone() for parameter in network.parameters()]
    with torch.no_grad():
        network[1].weight.add_(1)
    ema.update()
    assert torch.equal(network[0].weight, before[0])
    assert not torch.equal(ema.network[1].weight, before[2])
    assert not torch.equal(ema.network[1].weight, network[1].weight)
    assert network[1].weight.requires_grad


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def load_the_same(layers):
    layers.load_state_dict(layers.state_dict())


def write_to_data(layers):
    layers[0].weight.data[0, 0, 0, 0] += 1


def from_a_vector(layers):
    vector_to_parameters(torch.zeros(sum(weight.numel() for weight in layers.parameters())), layers.parameters())


@pytest.mark.parametrize("set_weights", [load_the_same, write_to_data, from_a_vector])
def test_every_way_to_set_weights_is_noticed_once(set_weights):
    layers = network()
    weights = WeightMonitor(layers)
    set_weights(layers)
    assert weights.were_replaced()
    weights.remember()
    assert not weights.were_replaced()


def test_weights_that_are_laid_out_in_another_way_or_used_were_not_set():
    layers = network()
    weights = WeightMonitor(layers)
    layers.to(memory_format=torch.channels_last)
    layers(torch.ones(2, 1, 4, 4)).sum().backward()
    assert not weights.were_replaced()


def optimizer_with_schedule(rate, position):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=rate, weight_decay=0.1)
    schedule = learning_rate_schedule(optimizer, "cosine", total_steps=10)
    for _ in range(position):
        optimizer.step()
        schedule.step()
    return optimizer, schedule


def test_the_warm_up_takes_at_most_a_tenth_of_the_steps():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = learning_rate_schedule(optimizer, warmup_steps=100, total_steps=20)
    assert [schedule.lr_lambdas[0](step) for step in range(3)] == [0.5, 1.0, 1.0]


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
