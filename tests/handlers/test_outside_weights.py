import pytest
import torch
from torch import nn
from torch.nn.utils import vector_to_parameters

from monai_diffae.handlers.outside_weights import OutsideWeights


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def load(layers):
    layers.load_state_dict(network().state_dict())


def load_the_same(layers):
    layers.load_state_dict(layers.state_dict())


def replace_data(layers):
    layers[0].bias.data = layers[0].bias.data + 1


def write_to_data(layers):
    layers[0].weight.data[0, 0, 0, 0] += 1


def exchange_values(layers):
    layers[0].bias.data = layers[0].bias.data.flip(0)


def from_a_vector(layers):
    vector_to_parameters(torch.zeros(sum(weight.numel() for weight in layers.parameters())), layers.parameters())


@pytest.mark.parametrize(
    "set_weights", [load, load_the_same, replace_data, write_to_data, exchange_values, from_a_vector]
)
def test_every_way_to_set_weights_is_noticed_once(set_weights):
    layers = network()
    weights = OutsideWeights(layers)
    set_weights(layers)
    assert weights.were_set()
    weights.remember()
    assert not weights.were_set()


def test_weights_that_are_laid_out_in_another_way_or_used_were_not_set():
    layers = network()
    weights = OutsideWeights(layers)
    layers.to(memory_format=torch.channels_last)
    layers(torch.ones(2, 1, 4, 4)).sum().backward()
    assert not weights.were_set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_any_kind_and_shape_have_a_checksum(dtype):
    layer = nn.Linear(2, 2, dtype=dtype)
    layer.scale = nn.Parameter(torch.tensor(1.0, dtype=dtype))
    weights = OutsideWeights(layer)
    layer.scale.data = torch.tensor(2.0, dtype=dtype)
    assert weights.were_set()
