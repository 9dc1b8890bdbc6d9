"""Networks with the user's weights (AlexNet, Inception v3, RadImageNet), and distances by features: LPIPS, FID, KID."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.functional import interpolate

from monai_diffae.data.tensor_files import read_torch_file
from monai_diffae.errors import ConfigError, MachineError, ScanError, check_installed
from monai_diffae.latents.statistics import Floats, float64_codes
from monai_diffae.policies import PathLike, Range

IMAGES_AT_ONCE = 64
ALEXNET = "alexnet-owt-7be5be79.pth"
SMALLEST_SIDE = 32  # pixels: AlexNet pools smaller images to nothing
_LEAST_FOR_FEATURES = 64  # pixels; 2 x 2 positions are left of them after the last convolution
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_RADIMAGENET_SIZE = 224  # pixels, as it was trained
NEIGHBORS = 3  # the neighbor whose distance is the radius of a sample's ball, as in the paper on precision and recall


def colour_planes(images: Tensor, model_range: Range, is_colour: bool) -> list[Tensor]:
    """Images (B, C, *S) as stacks of colour images (B * n, 3, H, W) from -1 to 1: one, or one per plane of volumes."""
    low, high = model_range
    scaled = ((images.float() - low) / (high - low) * 2 - 1).clamp(-1, 1)
    if scaled.shape[1] != 3 or not is_colour:
        scaled = scaled.flatten(0, 1)[:, None].expand(-1, 3, *scaled.shape[2:])
    if scaled.ndim == 4:
        return [scaled]
    return [scaled.movedim(axis, 1).flatten(0, 1) for axis in (2, 3, 4)]


@torch.no_grad()
def mean_features(
    run: Callable[[Tensor], Tensor], images: Tensor, model_range: Range, is_colour: bool = False
) -> Tensor:
    """The features (B, F) of images (B, C, *S): the mean over the slices of each plane, and then over the planes.

    Channels that are not colours are grey images, over which the mean is taken, too.
    """
    planes = []
    for stack in colour_planes(images, model_range, is_colour):
        features = torch.cat([run(part) for part in stack.split(IMAGES_AT_ONCE)])
        planes.append(features.unflatten(0, (len(images), -1)).mean(dim=1))
    return torch.stack(planes).mean(dim=0)


class PerceptualDistance(nn.Module):
    """The LPIPS of pairs of images, as torchmetrics computes it (version 0.1, AlexNet).

    A channel counts as a grey image, unless the three channels are colours. For volumes, it is the mean over all slices
    of a plane, and then over the three planes. ``weights`` is the file with AlexNet's weights, as torchvision
    names them; None: where torch keeps downloaded weights. Nothing is downloaded.
    """

    def __init__(
        self, weights: PathLike | None = None, device: str | torch.device = "cpu", is_colour: bool = False
    ) -> None:
        super().__init__()
        self.is_colour = is_colour
        check_installed("torchmetrics", "metrics")
        file = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET if weights is None else Path(weights)
        if not file.is_file():
            text = f"there is no {file.name}; give the file, or put it where torch looks for it (TORCH_HOME)"
            raise MachineError(text)
        other = "does not hold AlexNet's weights as torchvision names them"
        state: dict[str, Tensor] = read_torch_file(file, other, prefix="features.")
        from torchmetrics.functional.image.lpips import _NoTrainLpips  # the public names read TORCH_HOME only

        self.network = _NoTrainLpips(net="alex", pnet_rand=True)  # LPIPS' own weights come with the package
        try:
            for name, parameter in self.network.net.named_parameters():
                parameter.data.copy_(state[f"features.{name.split('.', 1)[1]}"])
        except (KeyError, RuntimeError) as error:
            raise ScanError(f"{file.name}: {other}") from error
        self.to(device)

    def forward(self, images: Tensor, others: Tensor, model_range: Range = (-1.0, 1.0)) -> Tensor:
        """The distances (B,) of images (B, C, *S), clipped to ``model_range``; with gradients, as a loss needs them."""
        pairs = [colour_planes(stack, model_range, self.is_colour) for stack in (images, others)]
        planes = []
        for a, b in zip(*pairs, strict=True):
            parts = zip(a.split(IMAGES_AT_ONCE), b.split(IMAGES_AT_ONCE), strict=True)
            distances = torch.cat([self.network(x, y).flatten() for x, y in parts])
            planes.append(distances.unflatten(0, (len(images), -1)).mean(dim=1))
        return torch.stack(planes).mean(dim=0)

    def features(self, images: Tensor, model_range: Range = (-1.0, 1.0)) -> Tensor:
        """The features (B, 256) of AlexNet's last convolution, averaged over the image; of volumes over all planes."""
        return mean_features(self._last_features, images, model_range, self.is_colour)

    def _last_features(self, images: Tensor) -> Tensor:
        size = tuple(max(side, _LEAST_FOR_FEATURES) for side in images.shape[2:])
        if size != tuple(images.shape[2:]):
            images = interpolate(images, size=size, mode="bilinear")
        features: Tensor = self.network.net(self.network.scaling_layer(images)).relu5
        return features.mean(dim=(2, 3))


def pairwise_distance(distance: PerceptualDistance, draws: Tensor, model_range: Range) -> Tensor:
    """The mean distance (B,) over all pairs of draws (B, K, C, *S) of an image; K is at least 2."""
    pairs = itertools.combinations(range(draws.shape[1]), 2)
    return torch.stack([distance(draws[:, i], draws[:, j], model_range) for i, j in pairs]).mean(dim=0)


class InceptionFeatures(nn.Module):
    """The 2048 features of Inception v3 that published FIDs use, by torch-fidelity, of images with 8 bits.

    Its weights, ``weights-inception-2015-12-05-6726825d.pth``, must be where torch keeps downloads.
    """

    def __init__(self, device: str | torch.device = "cpu", is_colour: bool = False) -> None:
        super().__init__()
        self.is_colour = is_colour
        if not (Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION).is_file():
            raise MachineError(f"there is no {INCEPTION} where torch looks for it (TORCH_HOME)")
        check_installed("torch_fidelity", "metrics")
        from torch_fidelity import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)

    def forward(self, images: Tensor, model_range: Range = (-1.0, 1.0)) -> Tensor:
        """The features (B, 2048) of images (B, C, *S) in ``model_range``, in 2D or 3D."""

        def run(part: Tensor) -> Tensor:
            features: Tensor = self.network(((part + 1) * 127.5).round().byte())[0]
            return features

        return mean_features(run, images, model_range, self.is_colour)


class RadImageNetFeatures(nn.Module):
    """The 2048 features of a ResNet-50 trained on RadImageNet (Mei et al. 2022), from a file for torchvision."""

    def __init__(self, weights: PathLike, device: str | torch.device = "cpu", is_colour: bool = False) -> None:
        super().__init__()
        self.is_colour = is_colour
        check_installed("torchvision", "metrics")
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

    def forward(self, images: Tensor, model_range: Range = (-1.0, 1.0)) -> Tensor:
        """The features (B, 2048) of images (B, C, *S) in ``model_range``, in 2D or 3D."""
        size = (_RADIMAGENET_SIZE, _RADIMAGENET_SIZE)

        def run(part: Tensor) -> Tensor:
            features: Tensor = self.backbone(interpolate(part, size=size, mode="bilinear"))
            return features.flatten(1)

        return mean_features(run, images, model_range, self.is_colour)


# -- distances between two sets of images by their features ------------------------------------------------------------


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """The squared Frechet distance of Gaussians with the moments of ``[N, D]`` and ``[M, D]`` (Heusel et al. 2017).

    With features of Inception v3 it is the FID. It is biased upwards in small samples, so compare only values of
    equally many samples. The trace of the root of the product of the covariances is computed as the sum of the singular
    values of ``X Y^T / sqrt((N - 1) (M - 1))``, with centred samples X and Y. That is exact and needs no root of a
    matrix, which fails where there are fewer samples than features.

    Example:
        >>> frechet_distance([[0.0], [2.0]], [[10.0], [14.0]])  # means 1 and 12, variances 2 and 8
        123.0...
    """
    x, y = _checked(a, b, num_least=2)
    difference = x.mean(axis=0) - y.mean(axis=0)
    x, y = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y))
    small_x, small_y = (z if len(z) <= z.shape[1] else np.asarray(np.linalg.qr(z, mode="r")) for z in (x, y))
    product = np.linalg.norm(small_x @ small_y.T, ord="nuc")
    return float(difference @ difference + np.square(x).sum() + np.square(y).sum() - 2 * product)


def kernel_distance(a: ArrayLike, b: ArrayLike) -> float:
    """The unbiased squared MMD of ``[N, D]`` and ``[M, D]``, kernel ``(x y / D + 1)^3`` (Binkowski et al. 2018).

    With features of Inception v3 it is the KID. Its expectation is 0 for samples of the same distribution, whatever
    their number, so it can be slightly negative.

    Example:
        >>> round(kernel_distance([[0.0], [1.0]], [[2.0], [3.0]]), 6)
        297.5
    """
    x, y = _checked(a, b, num_least=2)
    of_x, of_y, between = ((one @ other.T / x.shape[1] + 1) ** 3 for one, other in ((x, x), (y, y), (x, y)))
    within = (float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))) for kernel in (of_x, of_y))
    return sum(within) - 2 * float(between.mean())


def precision_and_recall(real: ArrayLike, generated: ArrayLike, k: int = NEIGHBORS) -> tuple[Floats, Floats]:
    """Which generated samples ``[M, D]`` are realistic, and which real ones ``[N, D]`` are covered (Kynkaanniemi 2019).

    A sample counts if it lies in a ball around a sample of the other set whose radius is the distance to that sample's
    k-th neighbor in its own set. The results are 0 and 1 for each; their means are precision and recall.

    Example:
        >>> realistic, covered = precision_and_recall([[0.0], [1], [2], [9]], [[0.5], [1.5], [30], [40]], k=1)
        >>> float(realistic.mean()), float(covered.mean())
        (0.5, 0.75)
    """
    x, y = _checked(real, generated, num_least=k + 1)
    return _covered(y, x, k), _covered(x, y, k)


def _covered(samples: Floats, others: Floats, k: int) -> Floats:
    """Whether each sample lies in the ball of one of the others."""
    from sklearn.metrics import pairwise_distances

    radii = np.sort(pairwise_distances(others), axis=1)[:, k]  # the first is the sample itself
    return np.asarray((pairwise_distances(samples, others) <= radii).any(axis=1), np.float64)


def _checked(a: ArrayLike, b: ArrayLike, num_least: int) -> tuple[Floats, Floats]:
    try:
        x = float64_codes(a, num_least=num_least)
        return x, float64_codes(b, x.shape[1], num_least=num_least)
    except ConfigError as error:
        raise ConfigError(str(error).replace("z_sem:", "features:")) from error
