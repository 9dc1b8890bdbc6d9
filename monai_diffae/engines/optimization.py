"""The learning rate over the steps of a training."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.optim.lr_scheduler import LambdaLR

from monai_diffae.errors import ConfigError, quoted


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer,
    kind: Literal["constant", "cosine"] = "constant",
    warmup_steps: int = 0,
    total_steps: int | None = None,
    final_factor: float = 0.0,
) -> LambdaLR:
    """A learning rate with linear warm-up, then constant or with cosine decay. It is stepped once per iteration.

    Args:
        optimizer: the optimiser, whose learning rate is the maximum.
        kind: ``constant``, or ``cosine`` down to ``final_factor`` times the maximum at ``total_steps``.
        warmup_steps: iterations from 0 to the maximum.
        total_steps: iterations of the whole training; required for ``cosine``.
        final_factor: the last learning rate, as a fraction of the maximum.

    Raises:
        ConfigError: the kind is unknown, or ``cosine`` has no ``total_steps``; or (after a step) a training continues
            beyond ``total_steps``, where its learning rate would be 0.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = learning_rate_schedule(optimizer, "cosine", warmup_steps=2, total_steps=10)
        >>> [round(schedule.lr_lambdas[0](step), 2) for step in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if kind not in ("constant", "cosine"):
        raise ConfigError(f"lr_schedule is {quoted(kind)}; choose one of: constant, cosine")
    if kind == "cosine" and total_steps is None:
        raise ConfigError("lr_schedule 'cosine' needs total_steps; give it, or use 'constant'")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if kind == "constant" or total_steps is None:
            return 1.0
        if step > total_steps and final_factor == 0:
            raise ConfigError(
                f"lr_schedule: 'cosine' ends at step {total_steps} with a learning rate of 0, but the training "
                "continues; in federated training, add configs/overlays/federated.json and set num_rounds to all rounds"
            )
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)
