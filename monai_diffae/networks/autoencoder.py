"""The networks of a diffusion autoencoder as one module, from one flat list of arguments, and by name."""

from __future__ import annotations

import difflib
import inspect
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffae.errors import ConfigError, one_line, quoted
from monai_diffae.networks.blocks import check_images, pad_beforehand
from monai_diffae.networks.denoising_unet import DenoisingUNet, UNetStage
from monai_diffae.networks.encoder_adapter import EncoderAdapter
from monai_diffae.networks.monai_unet import CrossAttentionUNet, is_monai_unet
from monai_diffae.networks.semantic_encoder import SemanticEncoder

logger = logging.getLogger(__name__)

# paper_*: the official configurations, with attention where a square image of that size is 16 x 16
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "base_channels": 32,
        "channel_mult": (1, 2, 2),
        "num_res_blocks": 1,
        "z_channels": 128,
        "time_embed_channels": 128,
    },
    "paper_64": {"base_channels": 64, "channel_mult": (1, 2, 4, 8), "attention_levels": (2,), "dropout": 0.1},
    "paper_128": {"base_channels": 128, "channel_mult": (1, 1, 2, 3, 4), "attention_levels": (3,), "dropout": 0.1},
    "paper_256": {"base_channels": 128, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_levels": (4,), "dropout": 0.1},
}

_FOR_ENCODER = "encoder_"


class DiffusionAutoencoder(nn.Module):
    """``z_sem = Enc(x0)`` and ``eps_theta(x_t, t, z_sem)`` in one module, so that DDP sees one forward.

    Diff-AE, Preechakul et al., CVPR 2022 (arXiv 2111.15640). Sampling and inversion are in
    :mod:`monai_diffae.diffusion`. :func:`~monai_diffae.networks.build_autoencoder` makes both networks from one flat
    list of arguments.

    Args:
        encoder: images (B, C', *S) -> z_sem (B, z_channels): a :class:`~monai_diffae.networks.SemanticEncoder` or any
            other network. If it returns several tensors, the first is used. Its attributes ``in_channels``,
            ``z_channels``, ``spatial_dims`` and ``size_divisors`` are used where it has them.
        unet: a :class:`~monai_diffae.networks.DenoisingUNet`; MONAI's ``DiffusionModelUNet`` or
            ``DiffusionModelUNetMaisi``, which becomes a :class:`~monai_diffae.networks.CrossAttentionUNet`; or a
            network with the same forward method and the attributes ``spatial_dims``, ``in_channels``, ``z_channels``
            and ``size_divisors``.
        encoder_frozen: keep the encoder as it is: no gradients, and evaluation mode also after ``train()``. In an
            :class:`~monai_diffae.networks.EncoderAdapter`, the network is frozen and the projection is trained.
        use_checkpoint: recompute the activations of both networks in the backward pass instead of keeping them. It has
            no effect on other people's networks.
        z_channels: size of z_sem; None: as the encoder or the UNet tells. Only needed for MONAI's UNet with several
            tokens, if the encoder does not tell.

    Attributes:
        spatial_dims: 2 or 3.
        z_channels: size of z_sem.
        encoder_in_channels: channels of the images to encode; None if the encoder does not tell.
        size_divisors: what each spatial size must be a multiple of, for both networks.

    Example:
        >>> from monai_diffae.networks import DenoisingUNet, SemanticEncoder
        >>> encoder = SemanticEncoder(2, z_channels=16, base_channels=8, channel_mult=(1, 2, 2))
        >>> unet = DenoisingUNet(2, z_channels=16, base_channels=8, channel_mult=(1, 2), time_embed_channels=8)
        >>> network = DiffusionAutoencoder(encoder, unet)
        >>> x0, x_t, t = torch.zeros(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([10, 500])
        >>> network(x_t, t, context=x0).shape
        torch.Size([2, 1, 8, 8])
        >>> network(x_t, t, context=network.encode(x0)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        encoder: nn.Module,
        unet: nn.Module,
        encoder_frozen: bool = False,
        use_checkpoint: bool = False,
        z_channels: int | None = None,
    ) -> None:
        super().__init__()
        if is_monai_unet(unet):
            if use_checkpoint:
                logger.warning("use_checkpoint: has no effect on MONAI's %s", type(unet).__name__)
            unet = CrossAttentionUNet(unet, z_channels or _known(encoder, "z_channels"))
        self.spatial_dims: int = _required(unet, "spatial_dims")
        self.z_channels: int = _required(unet, "z_channels")
        if z_channels not in (None, self.z_channels):
            raise ConfigError(f"z_channels is {z_channels}, but {type(unet).__name__} takes {self.z_channels}; omit it")
        self.in_channels: int = _required(unet, "in_channels")
        self.encoder_in_channels = _known(encoder, "in_channels")
        for name, in_unet in (("z_channels", self.z_channels), ("spatial_dims", self.spatial_dims)):
            in_encoder = _known(encoder, name)
            if in_encoder not in (None, in_unet):
                raise ConfigError(
                    f"{name} differs: {in_encoder} in the encoder ({type(encoder).__name__}), {in_unet} in the UNet; "
                    "give both networks the same number"
                )
        divisors = (_divisors(network, self.spatial_dims) for network in (unet, encoder))
        self.size_divisors = tuple(math.lcm(*pair) for pair in zip(*divisors, strict=True))
        self.unet = unet
        self.encoder = encoder
        pad_beforehand(self)
        self.encoder_frozen = encoder_frozen
        if encoder_frozen:
            _frozen_part(encoder).requires_grad_(False).eval()
        for module in self.modules():
            if isinstance(module, (SemanticEncoder, UNetStage)):
                module.use_checkpoint = use_checkpoint

    def train(self, mode: bool = True) -> DiffusionAutoencoder:
        """Switch between training and evaluation; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.encoder_frozen:
            _frozen_part(self.encoder).eval()
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, as torch does, but refuse those of which not one belongs to this network.

        MONAI Label loads any file that its user selects with ``strict=False``, and would answer from random weights.
        """
        if not strict and not state_dict.keys() & self.state_dict().keys():
            raise ConfigError("the file holds no weights of this network; choose models/model.pt")
        return super().load_state_dict(state_dict, strict, assign)

    def encode(self, x: Tensor) -> Tensor:
        """Clean images (B, encoder_in_channels, *S), normally in [-1, 1] -> z_sem (B, z_channels)."""
        if not torch.jit.is_scripting():
            check_images(x, self.spatial_dims, self.encoder_in_channels, self.size_divisors, "the image to encode")
            z_sem = self._encoded(x)
        else:
            z_sem = self.encoder(x)
        if isinstance(z_sem, (tuple, list)):  # MONAI's ViT also returns its hidden states
            z_sem = z_sem[0]
        if not torch.jit.is_scripting():
            self._check_z_sem(z_sem)
        return z_sem

    def forward(self, x: Tensor, timesteps: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Predict from noisy images; ``forward(x)`` alone predicts for x at time step 0 with z_sem = Enc(x).

        Args:
            x: noisy images x_t (B, C, *S); every size a multiple of its ``size_divisors``.
            timesteps: (B,), integers or floats; None: 0 everywhere.
            context: z_sem (B, z_channels), or the clean images (B, encoder_in_channels, *S), which are encoded here;
                None: x itself is encoded.

        Returns:
            (B, in_channels, *S): what the UNet was trained to predict.
        """
        if not torch.jit.is_scripting():
            check_images(x, self.spatial_dims, self.in_channels, self.size_divisors, "the noisy image")
        if context is None:
            context = x
        is_image = context.ndim == self.spatial_dims + 2
        z_sem = self.encode(context) if is_image else context
        if timesteps is None:
            timesteps = torch.zeros(x.shape[0], device=x.device)
        return self.unet(x, timesteps, z_sem)

    @torch.jit.unused
    def _encoded(self, x: Tensor) -> Any:
        try:
            return self.encoder(x)
        except (RuntimeError, ValueError) as error:  # MONAI's networks do not tell which images they take
            if isinstance(self.encoder, SemanticEncoder) or not re.search("size|D input", str(error)):
                raise
            size = " x ".join(map(str, x.shape[2:]))
            raise ConfigError(
                f"the encoder {type(self.encoder).__name__} cannot encode images of {size} ({one_line(error)}); "
                "change image_size, or spatial_dims of the encoder"
            ) from error

    @torch.jit.unused
    def _check_z_sem(self, z_sem: Tensor) -> None:
        if z_sem.ndim != 2 or z_sem.shape[1] != self.z_channels:
            advice = f"set z_channels to {z_sem.shape[1]}" if z_sem.ndim == 2 else "let it give one vector per image"
            if isinstance(self.unet, CrossAttentionUNet):
                advice += ", also in network_def"
            raise ConfigError(
                f"the encoder {type(self.encoder).__name__} gives {tuple(z_sem.shape)}: "
                f"z_channels={self.z_channels} needs (B, {self.z_channels}); {advice}, or use another encoder"
            )


def _frozen_part(encoder: nn.Module) -> nn.Module:
    """The part that ``encoder_frozen`` freezes: the encoder, or only the network in an adapter."""
    return encoder.network if isinstance(encoder, EncoderAdapter) else encoder


def _known(network: nn.Module, name: str) -> int | None:
    """A number that a network tells about itself; other people's networks may not have it."""
    value = getattr(network, name, None)
    return value if isinstance(value, int) else None


def _required(unet: nn.Module, name: str) -> int:
    value = _known(unet, name)
    if value is None:
        raise ConfigError(f"unet: {type(unet).__name__} has no {name}; use a DenoisingUNet, or add it to yours")
    return value


def _divisors(network: nn.Module, spatial_dims: int) -> Sequence[int]:
    """What each spatial size must be a multiple of; 1 where the network does not tell."""
    divisors = getattr(network, "size_divisors", None)
    if divisors is None:
        return (1,) * spatial_dims
    return (divisors,) * spatial_dims if isinstance(divisors, int) else tuple(divisors)


def preset(name: str, spatial_dims: int = 2, in_channels: int = 1, **overrides: Any) -> DiffusionAutoencoder:
    """A network by the name of its configuration; in a bundle, ``"_target_": "monai_diffae.networks.preset"``.

    Args:
        name: ``tiny`` (1.7 M parameters, for 32 to 64 pixels on a CPU), or ``paper_64``, ``paper_128``,
            ``paper_256``: what Diff-AE's official code trains at that many pixels (91, 129 and 169 M parameters).
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        **overrides: any other argument of :func:`build_autoencoder`.

    Example:
        >>> preset("tiny", z_channels=64).z_channels
        64
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {quoted(name)}: choose from {', '.join(PRESETS)}")
    try:
        return build_autoencoder(spatial_dims, in_channels, **{**PRESETS[name], **overrides})
    except ConfigError as error:
        raise ConfigError(f"preset {quoted(name)}: {error}") from error


def build_autoencoder(
    spatial_dims: int,
    in_channels: int = 1,
    encoder: nn.Module | None = None,
    encoder_frozen: bool = False,
    use_checkpoint: bool = False,
    **arguments: Any,
) -> DiffusionAutoencoder:
    """Both networks of a diffusion autoencoder from one flat list of arguments.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        encoder: a network of your own in place of :class:`SemanticEncoder`.
        encoder_frozen: see :class:`DiffusionAutoencoder`.
        use_checkpoint: see :class:`DiffusionAutoencoder`.
        **arguments: arguments of :class:`DenoisingUNet` and :class:`SemanticEncoder`. One that both have is given to
            both; with ``encoder_`` in front, to the encoder only. By default, the encoder has one level more than the
            UNet, with the same multiplier as the last.

    Example:
        >>> network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=16, encoder_num_heads=2)
        >>> network.encoder.config["channel_mult"], network.encoder.config["num_heads"]
        ([1, 2, 2], 2)
    """
    both = {"spatial_dims": spatial_dims, "in_channels": in_channels, **arguments}
    for_encoder = {
        name.removeprefix(_FOR_ENCODER): both.pop(name) for name in arguments if name.startswith(_FOR_ENCODER)
    }
    unet_names, encoder_names = _parameters(DenoisingUNet), _parameters(SemanticEncoder)
    _refuse_unknown(both, unet_names | encoder_names)
    _refuse_unknown(for_encoder, encoder_names, _FOR_ENCODER)
    # The UNet first: the order decides which random weights a seed gives.
    unet = DenoisingUNet(**{name: value for name, value in both.items() if name in unet_names})
    if encoder is None:
        *_, last = levels = unet.config["channel_mult"]
        settings = {name: value for name, value in both.items() if name in encoder_names}
        settings["channel_mult"] = [*levels, last]
        settings |= {name: value for name, value in for_encoder.items() if value is not None}
        encoder = SemanticEncoder(**settings)
    elif for_encoder:
        name = next(iter(for_encoder))
        raise ConfigError(f"{_FOR_ENCODER}{name} has no effect on an encoder of your own; omit it")
    return DiffusionAutoencoder(encoder, unet, encoder_frozen, use_checkpoint)


def _parameters(network: type[nn.Module]) -> set[str]:
    return set(inspect.signature(network).parameters)


def _refuse_unknown(arguments: dict[str, Any], known: set[str], prefix: str = "") -> None:
    for name in arguments.keys() - known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {quoted(prefix + nearest[0])}?" if nearest else ""
        raise ConfigError(f"there is no argument {quoted(prefix + name)}{hint}")
