import inspect

import torch
from torch import nn

from monai_diffae.networks import DenoisingUNet, LatentMLP, SemanticEncoder
from monai_diffae.networks.arguments import keeps_config


class Layer(nn.Module):
    @keeps_config
    def __init__(self, width, *, strides=((2, 1),)):
        super().__init__()
        self.linear = nn.Linear(width, width)


class Wider(Layer):
    @keeps_config
    def __init__(self, factor):
        super().__init__(2 * factor)


def test_arguments_are_kept_with_their_defaults_as_json_has_them():
    assert Layer(3).config == {"width": 3, "strides": [[2, 1]]}
    assert Layer(width=3, strides=()).config == {"width": 3, "strides": []}


def test_a_subclass_keeps_its_own_arguments():
    assert Wider(2).config == {"factor": 2}


def test_the_signature_and_the_weights_stay():
    assert list(inspect.signature(Layer).parameters) == ["width", "strides"]
    assert list(Layer(3).state_dict()) == ["linear.weight", "linear.bias"]


def test_every_network_keeps_all_its_arguments():
    networks = [SemanticEncoder(2, channel_mult=(1,)), DenoisingUNet(2, channel_mult=(1,)), LatentMLP(num_layers=2)]
    for network in networks:
        assert network.config.keys() == inspect.signature(type(network)).parameters.keys()
        with torch.device("meta"):
            again = type(network)(**network.config)
        assert again.config == network.config
