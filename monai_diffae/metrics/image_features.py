"""Networks whose features FID, KID, precision and recall use: Inception v3 and RadImageNet, with the user's weights."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from monai_diffae.data.torch_files import read_torch_file
from monai_diffae.errors import MachineError, ScanError
from monai_diffae.metrics.image_planes import mean_features

INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
_RADIMAGENET_SIZE = 224  # pixels, as it was trained


class InceptionFeatures(nn.Module):
    """The 2048 features of Inception v3 that published FIDs use, by the package ``pytorch-fid``.

    Its weights, ``pt_inception-2015-12-05-6726825d.pth``, must be where torch keeps downloads. Nothing is downloaded.

    Args:
        device: where to compute.

    Raises:
        MachineError: the package is not installed, or there are no weights.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        super().__init__()
        if not (Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION).is_file():
            raise MachineError(f"there is no {INCEPTION} where torch looks for it (TORCH_HOME)")
        if importlib.util.find_spec("pytorch_fid") is None:
            raise MachineError("the package pytorch-fid is not installed: pip install pytorch-fid")
        from pytorch_fid.inception import InceptionV3

        self.network = InceptionV3().eval().to(device)

    def forward(self, images: Tensor, model_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
        """The features (B, 2048) of images (B, C, *S) in ``model_range``, in 2D or 3D."""
        return mean_features(lambda part: self.network((part + 1) / 2)[0].flatten(1), images, model_range)


class RadImageNetFeatures(nn.Module):
    """The 2048 features of a ResNet-50 that was trained on RadImageNet (Mei et al. 2022), at 224 x 224.

    Args:
        weights: the file with its weights for torchvision, ``ResNet50.pt``.
        device: where to compute.

    Raises:
        MachineError: torchvision is not installed.
        ScanError: the file holds other weights.
    """

    def __init__(self, weights: str | os.PathLike[str], device: str | torch.device = "cpu") -> None:
        super().__init__()
        if importlib.util.find_spec("torchvision") is None:
            raise MachineError("torchvision is not installed: pip install 'monai-diffae[lpips]'")
        from torchvision.models import resnet50

        layers = list(resnet50(weights=None).children())[:9]  # all but the classifier
        self.backbone = nn.Sequential(*layers)
        other = "does not hold a ResNet-50 of RadImageNet, with keys backbone.0.weight"
        state = read_torch_file(Path(weights), other)
        try:
            self.load_state_dict(state)
        except Exception as error:
            raise ScanError(f"{Path(weights).name}: {other}") from error
        self.eval().requires_grad_(False).to(device)

    def forward(self, images: Tensor, model_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
        """The features (B, 2048) of images (B, C, *S) in ``model_range``, in 2D or 3D."""
        size = (_RADIMAGENET_SIZE, _RADIMAGENET_SIZE)

        def run(part: Tensor) -> Tensor:
            features: Tensor = self.backbone(interpolate(part, size=size, mode="bilinear"))
            return features.flatten(1)

        return mean_features(run, images, model_range)
