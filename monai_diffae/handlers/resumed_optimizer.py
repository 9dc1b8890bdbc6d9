"""The optimiser and the learning-rate schedule of a training that resumes, after their states were loaded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def set_rates(optimizer: Optimizer, lr_scheduler: LRScheduler, rates: Sequence[tuple[float, float]]) -> None:
    """Use the learning rates and weight decays of this run, at the current position of the schedule.

    ``rates`` are each group's learning rate at which the schedule begins, and its weight decay.
    """
    lr_scheduler.base_lrs = [rate for rate, _ in rates]
    for group, (rate, decay) in zip(optimizer.param_groups, rates, strict=True):
        before = group["initial_lr"]
        if rate != before:
            group["lr"] = group["lr"] * rate / before if before else rate
        group["initial_lr"], group["weight_decay"] = rate, decay


def set_schedule_back(lr_scheduler: LRScheduler, position: int, first: int) -> None:
    """Put a schedule that is at step ``position`` back to step ``first``; if they are equal, nothing changes.

    The schedule is stepped once per iteration.
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
