"""The exponential moving average of the weights, which is validated, shown and saved."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from monai.engines import Workflow
from torch import nn

from monai_diffae.engines.trainer import TrainingEvents


class EMA:
    """Ignite handler: average a network's weights from the first update on.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the average forgets the random initial weights.
    (Ignite's EMAHandler warms up linearly, and updates tensor by tensor.)

    Args:
        network: the network that is trained (not its DDP wrapper).
        decay: decay of the average after the warm-up.

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
