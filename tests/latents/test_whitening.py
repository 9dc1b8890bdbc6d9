import numpy as np

from monai_diffae.latents.whitening import whitening


def test_all_directions_vary_alike_but_those_that_hardly_vary():
    generator = np.random.default_rng(0)
    z = generator.normal(size=(5000, 6)) * [3, 1, 1, 0.5, 1e-3, 0]
    z = z @ np.linalg.qr(generator.normal(size=(6, 6)))[0]
    variances = np.sort(np.linalg.eigvalsh(np.cov(z @ whitening(z), rowvar=False)))
    np.testing.assert_allclose(variances[2:], 1, atol=0.06)
    assert (variances[:2] < 0.01).all()


def test_what_lies_across_the_others_is_seen():
    z = np.random.default_rng(0).normal(size=(500, 1)) * [1.0, 1.0]
    along, across = np.array([0.3, 0.3]), np.array([0.3, -0.3])
    axes = whitening(z)
    assert np.linalg.norm(across @ axes) > 5 * np.linalg.norm(along @ axes)


def test_a_single_case_and_a_single_dimension_have_axes():
    assert np.isfinite(whitening(np.ones((1, 4)))).all()
    assert whitening(np.random.default_rng(0).normal(size=(50, 1))).shape == (1, 1)
