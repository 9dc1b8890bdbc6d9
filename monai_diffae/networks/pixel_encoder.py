"""Principal components of the pixels in the place of an encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class PixelEncoder(nn.Module):
    """Encodes images to K fixed linear features of their P pixels, less a mean ``[P]``, along axes ``[K, P]``.

    There is no decoder.

    Example:
        >>> encoder = PixelEncoder(np.zeros(4), np.eye(2, 4))
        >>> encoder.encode(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
        tensor([[1., 2.]])
    """

    def __init__(self, mean: NDArray[np.floating[Any]], axes: NDArray[np.floating[Any]]) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.from_numpy(mean).float(), requires_grad=False)
        self.axes = nn.Parameter(torch.from_numpy(axes).float(), requires_grad=False)
        self.z_channels = len(axes)

    def encode(self, images: Tensor) -> Tensor:
        """The features (B, K) of images (B, C, *S)."""
        return (images.flatten(1) - self.mean) @ self.axes.T
