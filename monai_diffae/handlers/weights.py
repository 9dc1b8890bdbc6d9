"""The weights of a training: their average, whether a federated server replaced them, and their optimiser's state."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from monai.engines import Workflow
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monai_diffae.data.fingerprints import digest
from monai_diffae.engines.trainer import TrainingEvents


class EMA:
    """Ignite handler: average the weights of a network (not of its DDP wrapper) from the first update on.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the average forgets the random initial weights.
    (Ignite's EMAHandler warms up linearly, and updates tensor by tensor.)

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> average = EMA(layer, decay=0.99)
        >>> average.update()
        >>> bool((average.network.weight == layer.weight).all())
        True
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999) -> None:
        self.source = network
        # Frozen weights never change, so both networks share them.
        frozen = {id(weight): weight for weight in network.parameters() if not weight.requires_grad}
        self.network = deepcopy(network, frozen).eval().requires_grad_(False)
        self.decay = decay
        self.num_updates = 0

    def attach(self, engine: Workflow) -> None:
        """Update after each optimiser step of a trainer; the average has the trainer's memory format."""
        memory_format = getattr(engine, "memory_format", torch.preserve_format)
        self.network.to(memory_format=memory_format)  # type: ignore[call-overload]
        engine.add_event_handler(TrainingEvents.WEIGHTS_UPDATED, self.update)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights; buffers are copied, frozen weights are left alone."""
        step = 1 - min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        pairs = zip(self.network.parameters(), self.source.parameters(), strict=True)
        trained = [(average, weight) for average, weight in pairs if weight.requires_grad]
        torch._foreach_lerp_([average for average, _ in trained], [weight for _, weight in trained], step)
        for average, current in zip(self.network.buffers(), self.source.buffers(), strict=True):
            average.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and how many updates they hold."""
        return {"network": self.network.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved average."""
        self.network.load_state_dict(state["network"])
        self.num_updates = state["num_updates"]


class WeightMonitor:
    """Detects that a federated server replaced the weights of a network since they were last remembered.

    Two signs are compared, as each misses a case: torch's version numbers miss writes through ``.data``, a checksum
    misses a write of the same values. Weights that share the network's own memory (``state_dict``) may be loaded.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        network.register_load_state_dict_pre_hook(_leave_memory_of)
        self.remember()

    def remember(self) -> None:
        """From now on, compare with the current weights."""
        self._remembered = self._signs()

    def were_replaced(self) -> bool:
        """Whether a weight was written since :meth:`remember`; this reads all weights."""
        return self._remembered != self._signs()

    def _signs(self) -> list[Any]:
        weights = list(self._network.parameters())
        # in the order of their indices, whatever the memory format is
        arrays = (weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for weight in weights)
        return [digest(*arrays), *(weight._version for weight in weights)]


def _leave_memory_of(network: nn.Module, given: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Move weights of the network to new memory where the weights to load are in the same memory."""
    for name, weight in network.named_parameters():
        other = given.get(prefix + name)
        if isinstance(other, Tensor) and other.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr():
            weight.data = weight.data.clone()


def set_rates(optimizer: Optimizer, lr_scheduler: LRScheduler, rates: Sequence[tuple[float, float]]) -> None:
    """Use these first learning rates and weight decays of each group, at the current position of the schedule."""
    lr_scheduler.base_lrs = [rate for rate, _ in rates]
    for group, (rate, decay) in zip(optimizer.param_groups, rates, strict=True):
        before = group["initial_lr"]
        if rate != before:
            group["lr"] = group["lr"] * rate / before if before else rate
        group["initial_lr"], group["weight_decay"] = rate, decay


def set_schedule_back(lr_scheduler: LRScheduler, position: int, first: int) -> None:
    """Put a schedule that is at step ``position`` back to step ``first``; if they are equal, nothing changes."""
    if position != first:
        lr_scheduler.last_epoch = first - 1
        lr_scheduler.step()


def lay_out_like_parameters(optimizer: Optimizer) -> None:
    """Give moments the memory format of their weights, as fused optimisers update both in memory order."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
