import torch
from torch import nn

from monai_diffae.handlers import EMA


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


def test_an_average_goes_on_from_its_state():
    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    whole, part = EMA(layer, 0.9), EMA(layer, 0.9)
    changes = torch.randn(6, 2, 2)
    for i, change in enumerate(changes):
        with torch.no_grad():
            layer.weight.add_(change)
        whole.update()
        part.update()
        if i == 2:
            state, part = part.state_dict(), EMA(layer, 0.9)
            part.load_state_dict({"network": {k: v.clone() for k, v in state["network"].items()}, "num_updates": 3})
    assert torch.equal(whole.network.weight, part.network.weight)
