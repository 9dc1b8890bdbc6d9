"""Reading the weights of a network from a file, with all checks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from monai_diffae.data.torch_files import read_torch_file
from monai_diffae.errors import ConfigError, ScanError, quoted


def read_weights(path: Path, network: nn.Module) -> dict[str, torch.Tensor]:
    """Read the weights of a network from a file, and check them.

    The network is newly built. Its buffers that hold NaN, because they are measured later, may do so in the file.
    """
    state: dict[str, torch.Tensor] = read_torch_file(path, "cannot be read as weights; copy it again, or train again")
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConfigError(
            f"{path.name}: is not a state dict of weights; choose a bundle that was trained with this package"
        )
    measured_later = {name for name, buffer in network.named_buffers() if buffer.isnan().any()}
    checked = [value for name, value in state.items() if value.is_floating_point() and name not in measured_later]
    if not all(torch.isfinite(value).all() for value in checked):
        raise ScanError(f"{path.name}: holds weights that are not finite; copy it again, or train again")
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    names = shapes.keys() | state.keys()
    misfits = [name for name in names if name not in state or name not in shapes or state[name].shape != shapes[name]]
    if misfits:
        raise ConfigError(
            f"{path.name}: {len(misfits)} of {len(names)} weights do not fit the configuration's network, the first "
            f"is {quoted(min(misfits))}; use the configuration with which the model was trained"
        )
    return state
