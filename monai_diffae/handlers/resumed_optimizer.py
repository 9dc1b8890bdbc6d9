"""The optimiser and the learning-rate schedule of a training that resumes, after their states were loaded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def set_rates(optimizer: Optimizer, lr_scheduler: LRScheduler, rates: Sequence[tuple[float, float]]) -> None:
    """Use the learning rates and weight decays of this run, at the current position of the schedule.

    Args:
        optimizer: the optimiser.
        lr_scheduler: its schedule.
        rates: for each group of parameters, the learning rate at which the schedule begins, and the weight decay.

    Example:
        >>> optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
        >>> set_rates(optimizer, schedule, [(4.0, 0.1)])
        >>> optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]
        (2.0, 0.1)
    """
    lr_scheduler.base_lrs = [rate for rate, _ in rates]
    for group, (rate, decay) in zip(optimizer.param_groups, rates, strict=True):
        before = group["initial_lr"]
        if rate != before:
            group["lr"] = group["lr"] * rate / before if before else rate
        group["initial_lr"], group["weight_decay"] = rate, decay


def set_schedule_back(lr_scheduler: LRScheduler, position: int, first: int) -> None:
    """Put a schedule that is at step ``position`` back to step ``first``; if they are equal, nothing changes.

    Args:
        lr_scheduler: the schedule, which is stepped once per iteration.
        position: the step at which it is.
        first: the step at which it shall be.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        >>> schedule.last_epoch = 7
        >>> set_schedule_back(schedule, 7, 2)
        >>> optimizer.param_groups[0]["lr"]
        0.25
    """
    if position != first:
        lr_scheduler.last_epoch = first - 1
        lr_scheduler.step()


def lay_out_like_parameters(optimizer: Optimizer) -> None:
    """Give moments the memory format of their weights, as fused optimisers update both in memory order."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
