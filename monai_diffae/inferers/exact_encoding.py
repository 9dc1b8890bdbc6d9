"""z_sem of images, equal to the bit whatever is encoded beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_diffae.inferers import DiffusionAutoencoderInferer

_MOST_AT_ONCE = 16


_VOXELS_AT_ONCE = 2**17


@torch.no_grad()
def encode_exactly(images: Tensor, inferer: DiffusionAutoencoderInferer, network: nn.Module) -> Tensor:
    """z_sem (B, D) in float32, to the bit the same for an image whatever the others are, and how many.

    Convolutions of other batch sizes may take other algorithms, which differ in the last bits (4e-7 on a CPU): for
    images of one size the encoder always runs on as many, the last one repeated where they do not suffice.

    Args:
        images: (B, C, *S) in the model's range, on the network's device.
        inferer: encodes.
        network: the autoencoder, in evaluation mode.
    """
    at_once = images_at_once(images.shape[2:])
    parts = []
    for part in images.split(at_once):
        padded = torch.cat([part, part[-1:].expand(at_once - len(part), *part.shape[1:])])
        with (
            torch.autocast(images.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            parts.append(inferer.encode(padded.float(), network)[: len(part)])
    return torch.cat(parts)


def images_at_once(size: Sequence[int]) -> int:
    """How many images of a size the encoder takes: a function of the size alone; large ones go singly."""
    return min(_MOST_AT_ONCE, max(1, _VOXELS_AT_ONCE // math.prod(size)))
