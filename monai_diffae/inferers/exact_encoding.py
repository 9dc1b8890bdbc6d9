"""Encoding whose result for an image does not depend on the other images of its batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.networks.kernels import exact_convolutions

_MAX_BATCH_SIZE = 16
_VOXELS_PER_BATCH = 2**17


@torch.no_grad()
def encode_exactly(images: Tensor, inferer: DiffusionAutoencoderInferer, network: nn.Module) -> Tensor:
    """z_sem (B, D) in float32, the same to the bit for an image whatever the other images are.

    With another batch size a convolution may use another algorithm, whose results differ in the last bits (4e-7 on a
    CPU). Therefore the batch size depends on the image size alone. A batch that is too small is filled up with copies
    of its last image.

    Args:
        images: (B, C, *S) in the model's range, on the network's device.
        inferer: the inferer that encodes.
        network: the autoencoder, in evaluation mode.
    """
    at_once = images_at_once(images.shape[2:])
    parts = []
    for part in images.split(at_once):
        padded = torch.cat([part, part[-1:].expand(at_once - len(part), *part.shape[1:])])
        with (
            torch.autocast(images.device.type, enabled=False),
            exact_convolutions(),
        ):
            parts.append(inferer.encode(padded.float(), network)[: len(part)])
    return torch.cat(parts)


def images_at_once(size: Sequence[int]) -> int:
    """The batch size for images of this size (*S); 1 for large images."""
    return min(_MAX_BATCH_SIZE, max(1, _VOXELS_PER_BATCH // math.prod(size)))
