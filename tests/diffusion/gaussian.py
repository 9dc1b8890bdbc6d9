"""Data from N(0, STD^2), for which the best possible network is known in closed form."""

import torch

STD = 0.5
KINDS = [
    ("linear_beta", "x0"), ("linear_beta", "eps"), ("linear_beta", "v"), ("cosine", "v"), ("rectified_flow", "v"),
    ("rectified_flow", "x0"),
]  # fmt: skip
"""Schedules with what the network predicts."""


def exact(schedule, std=STD):
    """The best possible network for data from N(0, std^2): E[target | x_t]."""

    def denoise(x, t):
        alpha, sigma = schedule.coefficients(t, x)
        variance = alpha**2 * std**2 + sigma**2
        return schedule.target(alpha * std**2 / variance * x, sigma / variance * x, t)

    return denoise


def curved(schedule):
    """The best possible network for N(0, STD^2) with a curve added, so that its output is not linear in x."""

    def denoise(x, t):
        alpha, sigma = schedule.coefficients(t, x)
        variance = alpha**2 * STD**2 + sigma**2
        x0 = alpha * STD**2 / variance * x
        x0 = x0 + 0.3 * torch.sin(3 * x0) * sigma**2
        return schedule.target(x0, (x - alpha * x0) / sigma, t)

    return denoise


def noise(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
