"""Numbers of the official Diff-AE code for many configurations, stored by ``make_official_numbers.py``.

Weights are not stored but drawn anew by NumPy's RandomState, whose numbers stay the same in all versions.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

FILE = Path(__file__).with_name("official_numbers.safetensors")
T = torch.tensor([3, 871])
"""Time steps of the numbers."""


def filled(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors under official names; nothing is 0, so that every path shows."""
    rng, made = np.random.RandomState(seed), {}
    for name, shape in shapes.items():
        name = name.replace("cond_layers.1", "linear_emb")  # modules of the latent MLP that have two names
        values = rng.standard_normal(shape).astype(np.float32)
        values *= 0.1 if len(shape) == 1 else 1 / math.prod(shape[1:]) ** 0.5
        is_scale = len(shape) == 1 and name.endswith("weight")
        made.setdefault(name, torch.from_numpy(values + is_scale))
    return {name: made[name.replace("cond_layers.1", "linear_emb")] for name in shapes}


def official_weights(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The state dict of a configuration. The numbers are those of seed 0."""
    with safe_open(FILE, "pt") as file:
        return filled(json.loads(file.metadata()[name])["shapes"], seed)


def official_numbers(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A configuration, in the official code's words, and inputs and outputs of its network."""
    with safe_open(FILE, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(f"{name}/")]  # noqa: SIM118 - it is no dict
        values = {key.partition("/")[2]: file.get_tensor(key) for key in keys}
        return json.loads(file.metadata()[name])["config"], values
