"""Trajectories between x_T and x0, and the fast decoder that is trained on them."""

import pytest
import torch

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.inferers.fast_decoder import FastDecoder
from monai_diffae.inferers.trajectories import decoded_trajectory, few_levels, inverted_trajectory

FLOW = {"schedule": "rectified_flow", "prediction": "v"}


@pytest.mark.parametrize("schedule", [FLOW, {"schedule": "linear_beta", "prediction": "v"}])
def test_up_and_down_are_the_same_trajectory(network, images, schedule):
    inferer = DiffusionAutoencoderInferer(DiffusionSchedule(**schedule), steps=40, clip=False)
    levels = few_levels(inferer, 4)
    z_sem = inferer.encode(images, network)
    up = inverted_trajectory(inferer, images, network, z_sem, levels)
    assert up.shape == (3, 5, 1, 16, 16)
    assert torch.equal(up[:, -1], images)
    torch.testing.assert_close(up[:, 0], inferer.invert(images, network, z_sem))
    down = decoded_trajectory(inferer, up[:, 0], network, z_sem, levels)
    assert torch.equal(down[:, 0], up[:, 0])
    assert (down - up).square().mean() < 1e-3


def test_more_steps_than_the_decoder_has_are_refused(network):
    inferer = DiffusionAutoencoderInferer(DiffusionSchedule(**FLOW), steps=4)
    assert few_levels(inferer, 4) == inferer.schedule.decoding_levels(4)
    for steps in (0, 5, 2.5):
        with pytest.raises(ConfigError, match=f"steps is {steps}; it must be a whole number between 1 and 4"):
            few_levels(inferer, steps)


@pytest.fixture
def exact():
    return DiffusionAutoencoderInferer(DiffusionSchedule(**FLOW, clip_range=(-1, 1)), steps=10, clip=False)


def fast(exact, network, steps):
    decoder = FastDecoder(network.unet, tuple(few_levels(exact, steps)))
    return exact.replace(decoder="fast", fast_decoder=decoder)


def test_with_the_networks_own_weights_it_is_ddim_with_few_steps(exact, network, images):
    z_sem, x_T = exact.encode(images, network), torch.randn_like(images)
    ddim = exact.replace(solver="ddim").decode(z_sem, x_T, network)
    torch.testing.assert_close(fast(exact, network, 10).decode(z_sem, x_T, network), ddim.clamp(-1, 1))
    calls = []
    fast(exact, network, 2).decode(z_sem, x_T, network, lambda done, total, _: calls.append(total))
    assert calls == [2, 2]


def test_inversion_is_that_of_the_exact_decoder(exact, network, images):
    quick = fast(exact, network, 2)
    assert torch.equal(quick.invert(images, network), exact.invert(images, network))


def test_a_round_trip_refines_x_T_only_where_the_exact_decoder_needs_it(exact, network, images):
    images = images[:1]
    x_T, decoded = exact.replace(invert_tolerance=1e-7).round_trip(images, network)
    quick = fast(exact, network, 2).replace(invert_tolerance=1e-7)
    fast_x_T, fast_decoded = quick.round_trip(images, network)
    torch.testing.assert_close(fast_x_T, x_T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fast_decoded, quick.decode(exact.encode(images, network), fast_x_T, network))
    assert not torch.allclose(fast_decoded, decoded, atol=1e-4)
    unchecked = fast(exact, network, 2).replace(invert_tolerance=None).round_trip(images, network)[0]
    assert torch.equal(unchecked, exact.invert(images, network))


def test_without_a_fast_decoder_it_is_refused(exact, network, images):
    with pytest.raises(ConfigError, match="there is no fast decoder; train it with monai-diffae distill"):
        exact.replace(decoder="fast").reconstruct(images, network)
    with pytest.raises(ConfigError, match="decoder is 'slow'; choose one of: exact, fast"):
        exact.replace(decoder="slow")
