import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import geometric_slerp

from monai_diffae.errors import ConfigError
from monai_diffae.inferers.interpolation import lerp, slerp
from monai_diffae.inferers.slices import from_slices, to_slices


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


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-9])
def test_between_parallel_codes_the_arc_is_the_line(factor):
    first = codes(3)[0].double()
    points = slerp(first, factor * first, [0, 0.25, 1])
    torch.testing.assert_close(points, lerp(first, factor * first, [0, 0.25, 1]))
    assert points.isfinite().all()


@pytest.mark.parametrize("factor", [-2.0, 0.0, float("nan")])
def test_codes_without_a_unique_arc_between_them_are_refused(factor):
    first = codes(3)[0].double()
    for a, b in ((first, factor * first), (factor * first, first)):
        with pytest.raises(ConfigError, match="no arc between codes that are opposite, zero or not finite"):
            slerp(a, b, [0, 0.5, 1])


def test_codes_that_do_not_match_are_refused():
    with pytest.raises(ConfigError, match=r"shape \(1, 4\) and \(1, 5\)"):
        slerp(torch.ones(1, 4), torch.ones(1, 5), [0.5])
    with pytest.raises(ConfigError, match="give one of each"):
        slerp(torch.ones(2, 4), torch.ones(2, 4), [0.5])


def test_slices_are_those_along_the_last_axis_one_volume_after_the_other_and_the_way_back_is_exact():
    volumes, codes = torch.randn(2, 1, 4, 5, 3), torch.randn(2, 3, 6)
    slices = to_slices(volumes)
    assert slices.shape == (6, 1, 4, 5)
    assert torch.equal(slices[4], volumes[1, ..., 1])
    assert torch.equal(to_slices(codes)[4], codes[1, 1])
    for stack in (volumes, codes):
        assert torch.equal(from_slices(to_slices(stack), 3), stack)
