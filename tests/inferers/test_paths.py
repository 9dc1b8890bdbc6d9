"""Paths between codes, trajectories between x_T and x0, and the fast decoder that is trained on them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import geometric_slerp

from monai_diffae import DiffusionAutoencoderInferer, DiffusionSchedule
from monai_diffae.errors import ConfigError
from monai_diffae.inferers.autoencoding import FastDecoder
from monai_diffae.inferers.paths import decoded_trajectory, few_levels, inverted_trajectory, lerp, slerp


def codes(seed, shape=(1, 2, 3, 4)):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("between", [lerp, slerp])
def test_both_ends_are_the_codes_to_the_bit_and_there_is_one_row_per_weight(between):
    first, second = codes(0)
    points = between(first, second, [0, 0.3, 0.7, 1])
    assert points.shape == (4, 2, 3, 4)
    assert points.dtype == torch.float32
    assert torch.equal(points[:1], first)
    assert torch.equal(points[-1:], second)
    # the path is the same in the other direction
    torch.testing.assert_close(between(second, first, [1, 0.7, 0.3, 0]), points, atol=1e-6, rtol=0)


@given(st.integers(0, 10_000), st.integers(2, 8), st.floats(0, 1))
def test_on_a_sphere_slerp_equals_that_of_scipy(seed, size, weight):
    a, b = (code / code.norm() for code in codes(seed, (1, size)).double())
    expected = geometric_slerp(a[0].numpy(), b[0].numpy(), [weight])[0]
    np.testing.assert_allclose(slerp(a, b, [weight])[0].numpy(), expected, atol=1e-6)


def test_between_parallel_codes_the_arc_is_the_line_and_without_a_unique_arc_there_is_none():
    first = codes(3)[0].double()
    for factor in (1.0, 1 + 1e-9):
        points = slerp(first, factor * first, [0, 0.25, 1])
        torch.testing.assert_close(points, lerp(first, factor * first, [0, 0.25, 1]))
        assert points.isfinite().all()
    for other in (-2.0 * first, 0.0 * first, float("nan") * first):
        for a, b in ((first, other), (other, first)):
            with pytest.raises(ConfigError, match="no arc between codes that are opposite, zero or not finite"):
                slerp(a, b, [0, 0.5, 1])


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


@pytest.fixture
def exact():
    return DiffusionAutoencoderInferer(DiffusionSchedule(**FLOW, clip_range=(-1, 1)), steps=10, clip=False)


def fast(exact, network, steps):
    decoder = FastDecoder(network.unet, tuple(few_levels(exact, steps)))
    return exact.replace(decoder="fast", fast_decoder=decoder)


def test_with_the_networks_own_weights_it_is_ddim_with_few_steps(exact, network, images):
    z_sem, x_T = exact.encode(images, network), torch.randn_like(images)
    ddim = exact.replace(solver="ddim").decode(z_sem, network, x_T)
    torch.testing.assert_close(fast(exact, network, 10).decode(z_sem, network, x_T), ddim.clamp(-1, 1))
    calls = []
    fast(exact, network, 2).decode(z_sem, network, x_T, lambda done, total, _: calls.append(total))
    assert calls == [2, 2]
    assert torch.equal(fast(exact, network, 2).invert(images, network), exact.invert(images, network))


def test_a_round_trip_refines_x_T_only_where_the_exact_decoder_needs_it(exact, network, images):
    images = images[:1]
    x_T, decoded = exact.replace(invert_tolerance=1e-7).round_trip(images, network)
    quick = fast(exact, network, 2).replace(invert_tolerance=1e-7)
    fast_x_T, fast_decoded = quick.round_trip(images, network)
    torch.testing.assert_close(fast_x_T, x_T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fast_decoded, quick.decode(exact.encode(images, network), network, fast_x_T))
    assert not torch.allclose(fast_decoded, decoded, atol=1e-4)
    unchecked = fast(exact, network, 2).replace(invert_tolerance=None).round_trip(images, network)[0]
    assert torch.equal(unchecked, exact.invert(images, network))
