import numpy as np
import pytest
import torch

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.diffusion.multistep import Evaluation, interpolated_step

LEVELS = [700, 820, 930]
"""The levels of three evaluations; a step starts from the first."""


def evaluation(t, parameterisation, value):
    """An evaluation whose x0, eps or velocity is ``value``."""
    value, zero = torch.tensor([[value]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    return Evaluation(t, value, zero) if parameterisation == "x0" else Evaluation(t, zero, value)


@pytest.mark.parametrize(
    ("name", "prediction", "t_next"), [("linear_beta", "eps", 500), ("cosine", "v", 760), ("rectified_flow", "v", 500)]
)
@pytest.mark.parametrize(("parameterisation", "order"), [("x0", 2), ("eps", 3), ("velocity", 1), ("velocity", 3)])
def test_a_step_is_exact_where_the_network_is_a_polynomial_in_log_snr(
    name, prediction, parameterisation, t_next, order
):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    coefficients = [0.3, -0.2, 0.1][:order]

    def network(log_snr):
        return np.polynomial.polynomial.polyval(log_snr, coefficients)

    evaluations = [evaluation(t, parameterisation, network(schedule.log_snr(t))) for t in LEVELS[:order]]
    x = torch.full((1, 1), 0.7, dtype=torch.float64)
    (alpha, sigma), (alpha_next, sigma_next) = schedule.level(LEVELS[0]), schedule.level(t_next)
    # the integral by a fine midpoint rule over s = sigma / (alpha + sigma)
    edges = np.linspace(sigma / (alpha + sigma), sigma_next / (alpha_next + sigma_next), 20_001)
    middle = (edges[1:] + edges[:-1]) / 2
    variable, scale, scale_next = {
        "x0": ((1 - edges) / edges, sigma, sigma_next),
        "eps": (edges / (1 - edges), alpha, alpha_next),
        "velocity": (edges, alpha + sigma, alpha_next + sigma_next),
    }[parameterisation]
    values = network(np.log((1 - middle + schedule.log_snr_cap) / middle))
    expected = scale_next * (0.7 / scale + float((values * np.diff(variable)).sum()))
    actual = interpolated_step(schedule, x, LEVELS[0], t_next, evaluations, parameterisation)
    assert float(actual) == pytest.approx(expected, rel=1e-6)
