import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.dimensions import active_dimensions


def test_independent_dimensions_all_count():
    z = np.random.default_rng(0).normal(size=(20_000, 16))
    found = active_dimensions(z + 1e3)
    assert (found.dims, found.active, found.dims_for_95_percent) == (16, 16, 16)
    assert found.participation_ratio == pytest.approx(16, rel=0.01)


def test_copies_are_active_but_explain_nothing_more():
    line = np.random.default_rng(0).normal(size=(100, 1)) * np.ones(5)
    found = active_dimensions(np.concatenate([line, np.full((100, 3), 7.0)], axis=1))
    assert (found.dims, found.active, found.dims_for_95_percent) == (8, 5, 1)
    assert found.participation_ratio == pytest.approx(1)


def test_scale_does_not_matter_and_what_hardly_varies_is_inactive():
    z = np.random.default_rng(0).normal(size=(500, 4)) * [1, 1, 1, 0.05]
    for scale in (1e-6, 1.0, 1e6):
        assert active_dimensions(z * scale).active == 3


def test_cases_that_are_all_the_same_have_none():
    found = active_dimensions(np.ones((5, 3)))
    assert (found.active, found.participation_ratio, found.dims_for_95_percent) == (0, 0, 0)
    with pytest.raises(ConfigError, match="too few"):
        active_dimensions(np.ones((1, 3)))
