import json

import pytest
import torch

from monai_diffae.errors import ConfigError
from monai_diffae.networks import LatentMLP

SMALL = {"z_channels": 6, "hidden_channels": 10, "num_layers": 4}


def small(**overrides):
    torch.manual_seed(0)
    return LatentMLP(**{**SMALL, **overrides}).eval()


def test_the_papers_network_has_its_size():
    with torch.device("meta"):
        network = LatentMLP()
    # the first layer, eight with a skip, the last with a skip, the time embedding
    layer = 2048 + (512 + 1) * 2048 + 2 * 2048
    expected = (512 * 2048 + layer) + 8 * (2560 * 2048 + layer) + (2561 * 512) + (65 * 512 + 513 * 512)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_it_is_called_as_the_unet_is():
    network, z_t, t = small(), torch.randn(2, 6), torch.tensor([0, 999])
    out = network(x=z_t, timesteps=t, context=None)
    assert out.shape == (2, 6)
    assert torch.equal(network(z_t, t.float(), context=torch.randn(2, 3)), out)  # there is no condition
    assert not torch.allclose(network(z_t, t.flip(0)), out)


@pytest.mark.parametrize("skip_layers", [None, (), (0, 3)])
def test_config_builds_the_same_network_again(skip_layers):
    network = small(skip_layers=skip_layers, dropout=0.5)
    again = LatentMLP(**json.loads(json.dumps(network.config))).eval()
    again.load_state_dict(network.state_dict())
    z_t, t = torch.randn(2, 6), torch.tensor([3, 4])
    assert torch.equal(again(z_t, t), network(z_t, t))
    assert again.config == network.config
    assert network.config["skip_layers"] == ([1, 2, 3] if skip_layers is None else list(skip_layers))


def test_skips_say_which_layers_see_z_t():
    network = small(skip_layers=(1, 3), num_layers=4)
    assert [layer.linear.in_features for layer in network.layers] == [6, 16, 10]
    assert network.head.in_features == 16
    # [h, z_t]: h first
    with torch.no_grad():
        network.head.weight[:, :10] = 0
        network.head.weight[:, 10:] = torch.eye(6)
        network.head.bias.zero_()
        z_t = torch.randn(2, 6)
        torch.testing.assert_close(network(z_t, torch.tensor([1, 2])), z_t)


def test_weights_start_kaiming_normal():
    network = small(z_channels=64, hidden_channels=400)
    for layer in network.layers:
        for linear in (layer.linear, layer.time_projection):
            assert linear.weight.std().item() == pytest.approx((2 / linear.in_features) ** 0.5, rel=0.05)


def test_dropout_acts_in_training_alone_and_bfloat16_autocast_keeps_the_dtype():
    network, z_t, t = small(dropout=0.5), torch.randn(4, 6), torch.tensor([3, 4, 5, 6])
    out = network(z_t, t)
    assert torch.equal(network(z_t, t), out)
    with torch.autocast("cpu", torch.bfloat16):
        in_bfloat16 = network(z_t, t)
    assert in_bfloat16.dtype == torch.float32
    torch.testing.assert_close(in_bfloat16, out, rtol=0.1, atol=0.1)
    assert not torch.equal(network.train()(z_t, t), out)


def test_normalising_and_back():
    network = small()
    z = torch.randn(100, 6) * torch.tensor([1.0, 2, 3, 4, 5, 0.1]) + 3
    network.set_statistics(z.mean(dim=0), z.std(dim=0, keepdim=True))
    normal = network.normalise(z)
    torch.testing.assert_close(normal.mean(dim=0), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(normal.std(dim=0), torch.ones(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(network.denormalise(normal), z)
    again = small()
    for call in (again.normalise, again.denormalise):
        with pytest.raises(ConfigError, match="the mean and std of z_sem are not known: call set_statistics"):
            call(z)
    again.load_state_dict(network.state_dict())  # the statistics are saved with the weights
    assert torch.equal(again.normalise(z), normal)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(5), torch.ones(6), r"the mean of z_sem has the shape \(5,\): .* needs \(6,\)"),
        (torch.zeros(6), torch.tensor([1.0, 1, 0, 1, -1, 1]), "the std of z_sem is not positive"),
        (torch.full((6,), torch.nan), torch.ones(6), "or the mean or std not finite"),
    ],
)
def test_wrong_statistics_are_one_line_and_change_nothing(mean, std, message):
    network = small()
    with pytest.raises(ConfigError, match=message):
        network.set_statistics(mean, std)
    assert network.z_mean.isnan().all()
