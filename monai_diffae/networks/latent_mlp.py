"""The latent DDIM's denoiser: predicts eps, x0 or v from a noisy z_sem and its time step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn

from monai_diffae.errors import ConfigError
from monai_diffae.networks.arguments import keeps_config


class LatentLayer(nn.Module):
    """``Dropout(SiLU(LayerNorm(Linear(h) * (scale_bias + Linear(SiLU(t))))))``, Kaiming-normal initial weights."""

    def __init__(
        self, in_channels: int, out_channels: int, time_channels: int, dropout: float = 0.0, scale_bias: float = 1.0
    ) -> None:
        super().__init__()
        self.scale_bias = scale_bias
        self.linear = nn.Linear(in_channels, out_channels)
        self.time_projection = nn.Linear(time_channels, out_channels)
        self.norm = nn.LayerNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.linear, self.time_projection):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, h: Tensor, time_embedding: Tensor) -> Tensor:
        """(B, in_channels), (B, time_channels) -> (B, out_channels)."""
        h = self.linear(h) * (self.scale_bias + self.time_projection(F.silu(time_embedding)))
        return self.dropout(F.silu(self.norm(h)))


class LatentMLP(nn.Module):
    """An MLP with skips for ``eps_theta(z_t, t)``, where z_t is a noisy z_sem that is normalised per dimension.

    The latent DDIM's network of Diff-AE (Preechakul et al., CVPR 2022, arXiv 2111.15640), layer by layer as in its
    official code: every layer after the first also gets z_t, and the last layer is linear. It can be called as
    ``network(x=..., timesteps=..., context=...)``, like :class:`~monai_diffae.networks.DenoisingUNet`.

    Args:
        z_channels: D, the size of z_sem.
        hidden_channels: width of the layers.
        num_layers: number of layers, including the last one.
        time_channels: width of the sinusoidal time embedding.
        dropout: probability of dropping an element after each layer but the last.
        skip_layers: the layers (0 is the first) that get ``[h, z_t]`` instead of ``h``; None: all after the first.
        scale_bias: what is added to each layer's scale from the time step; 0 in some official models.
        time_activation: whether the time embedding ends in SiLU, as in some official models.

    Attributes:
        config: the arguments above as JSON can hold them: ``LatentMLP(**config)`` builds an equal network.
        z_mean: (D,), float32, the mean of the training set's z_sem; NaN while it is unknown. Saved with the weights.
        z_std: (D,), its standard deviation.

    Example:
        >>> network = LatentMLP(z_channels=16, hidden_channels=32, num_layers=3)
        >>> network(x=torch.zeros(2, 16), timesteps=torch.tensor([0, 999])).shape
        torch.Size([2, 16])
        >>> network.set_statistics(torch.zeros(16), torch.full((16,), 2.0))
        >>> network.normalise(torch.ones(1, 16))[0, :3]
        tensor([0.5000, 0.5000, 0.5000])
    """

    z_mean: Tensor
    z_std: Tensor

    if TYPE_CHECKING:  # TorchScript would try to compile an annotation that it sees
        config: dict[str, Any]

    @keeps_config
    def __init__(
        self,
        z_channels: int = 512,
        hidden_channels: int = 2048,
        num_layers: int = 10,
        time_channels: int = 64,
        dropout: float = 0.0,
        skip_layers: Sequence[int] | None = None,
        scale_bias: float = 1.0,
        time_activation: bool = False,
    ) -> None:
        super().__init__()
        skips = list(range(1, num_layers)) if skip_layers is None else sorted(skip_layers)
        if any(not 0 <= i < num_layers for i in skips):
            raise ConfigError(f"skip_layers={skips}: there are layers 0 to {num_layers - 1}")
        self.config["skip_layers"] = skips
        self.z_channels = z_channels
        self.time_channels = time_channels
        self.skip_layers = frozenset(skips)
        self.time_embed = nn.Sequential(
            nn.Linear(time_channels, z_channels),
            nn.SiLU(),
            nn.Linear(z_channels, z_channels),
            *([nn.SiLU()] if time_activation else []),
        )
        widths = [
            (hidden_channels if i > 0 else z_channels) + (z_channels if i in skips else 0) for i in range(num_layers)
        ]
        self.layers = nn.ModuleList(
            LatentLayer(width, hidden_channels, z_channels, dropout, scale_bias) for width in widths[:-1]
        )
        self.head = nn.Linear(widths[-1], z_channels)
        self.register_buffer("z_mean", torch.full((z_channels,), torch.nan))
        self.register_buffer("z_std", torch.full((z_channels,), torch.nan))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        """Predict from noisy z_sem.

        Args:
            x: z_t (B, D), normalised.
            timesteps: (B,), integers or floats on the scale of the training's time steps (0 to 1000).
            context: ignored: the latent DDIM has no condition.

        Returns:
            (B, D), in the dtype of ``x`` (also under autocast).
        """
        # MONAI's sinusoidal embedding is the official one: [cos, sin], with frequencies from 1 to 1 / 10000.
        time_embedding = self.time_embed(get_timestep_embedding(timesteps, self.time_channels).to(x.dtype))
        h = x
        for i, layer in enumerate(self.layers):
            h = layer(torch.cat([h, x], dim=1) if i in self.skip_layers else h, time_embedding)
        if len(self.layers) in self.skip_layers:
            h = torch.cat([h, x], dim=1)
        return self.head(h).to(x.dtype)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and standard deviation of the training set's z_sem: (D,) or (1, D) each."""
        mean, std = mean.float(), std.float()
        if not (mean.isfinite().all() and std.isfinite().all() and (std >= torch.finfo(std.dtype).tiny).all()):
            raise ConfigError(
                "the std of z_sem is not positive in some dimensions, or the mean or std not finite: z_sem hardly "
                "varies there; train the autoencoder longer, or compute the statistics again"
            )
        self.z_mean.copy_(mean.reshape(-1))
        self.z_std.copy_(std.reshape(-1))

    def normalise(self, z: Tensor) -> Tensor:
        """Normalise z_sem (B, D) of an encoder to mean 0 and standard deviation 1 over the training set."""
        mean, std = self._statistics(z)
        return (z - mean) / std

    def denormalise(self, z: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`: from samples of the diffusion to z_sem for a decoder."""
        mean, std = self._statistics(z)
        return z * std + mean

    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.z_std.isnan().any():
            raise ConfigError("the mean and std of z_sem are not known: call set_statistics with the training set's")
        return self.z_mean.to(z.dtype), self.z_std.to(z.dtype)
