"""Distances with pretrained networks: perceptual distance, FID, KID, precision and recall."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from monai_diffae import metrics
from monai_diffae.errors import MachineError, ScanError
from monai_diffae.metrics.deep_features import ALEXNET, INCEPTION, pairwise_distance


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with random weights of AlexNet, as torchvision names them, where torch keeps downloads."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    file = folder / "hub" / "checkpoints" / ALEXNET
    file.parent.mkdir(parents=True)
    torch.save(models.alexnet(weights=None).state_dict(), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(folder))
        yield file


@pytest.fixture(scope="module")
def reference(weights):
    """The public function of torchmetrics, which reads the same file."""
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    return partial(lpips.learned_perceptual_image_patch_similarity, net_type="alex", reduction="none")


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 1, 64, 48, generator=generator).mul(2).sub(1).unbind(0)


def test_the_perceptual_distance_is_that_of_torchmetrics(weights, reference, pair):
    distance = metrics.PerceptualDistance(weights)
    expected = reference(*(images.expand(-1, 3, -1, -1) for images in pair))
    torch.testing.assert_close(distance(*pair), expected, atol=1e-4, rtol=0)
    assert expected.min() > 0.01
    colour = [torch.rand(2, 3, 40, 40) for _ in range(2)]
    expected = reference(*(images * 2 - 1 for images in colour))
    in_colour = metrics.PerceptualDistance(weights, is_colour=True)
    torch.testing.assert_close(in_colour(*colour, (0.0, 1.0)), expected, atol=1e-4, rtol=0)
    assert distance(pair[0], pair[0]).abs().max() == 0
    # channels that are no colours are grey images, and the draws of a case are compared in pairs
    three = [torch.cat([images, images.flip(-1), images], dim=1) for images in pair]
    torch.testing.assert_close(distance(*three), (2 * distance(*pair) + distance(*(i.flip(-1) for i in pair))) / 3)
    grey = [distance.features(images) for images in (pair[0], pair[0].flip(-1))]
    torch.testing.assert_close(distance.features(three[0]), (2 * grey[0] + grey[1]) / 3)
    draws = torch.stack([*pair, pair[0].flip(-2)], dim=1)
    between = [distance(draws[:, i], draws[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(pairwise_distance(distance, draws, (-1.0, 1.0)), torch.stack(between).mean(dim=0))
    images = pair[0].clone().requires_grad_()
    distance(images, pair[1]).sum().backward()  # as a loss
    assert images.grad.any()


@pytest.mark.slow
def test_volumes_are_the_mean_over_three_planes(weights, reference):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 1, 31, 32, 33, generator=generator).unbind(0)
    expected = []
    for x, y in zip(a[:, 0] * 2 - 1, b[:, 0] * 2 - 1, strict=True):
        planes = [
            torch.stack([reference(p.expand(1, 3, -1, -1), q.expand(1, 3, -1, -1)).mean()
                         for p, q in zip(x.unbind(axis), y.unbind(axis), strict=True)]).mean()
            for axis in range(3)
        ]  # fmt: skip
        expected.append(torch.stack(planes).mean())
    torch.testing.assert_close(
        metrics.PerceptualDistance(weights)(a, b, (0.0, 1.0)), torch.stack(expected), atol=1e-4, rtol=0
    )


def test_weights_that_are_missing_or_others(tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MachineError, match=f"there is no {ALEXNET}; give the file, or put it where torch looks"):
        metrics.PerceptualDistance()
    with pytest.raises(MachineError, match=f"there is no {INCEPTION} where torch looks for it"):
        metrics.InceptionFeatures()
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(ScanError, match="b.pth: does not hold AlexNet's weights"):
        metrics.PerceptualDistance(tmp_path / "b.pth")


@pytest.fixture
def images():
    return torch.rand(2, 1, 40, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_radimagenet_is_torchvisions_network_with_other_weights(images, tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    network = models.resnet50(weights=None).eval()
    backbone = torch.nn.Sequential(*list(network.children())[:9])
    torch.save({f"backbone.{name}": value for name, value in backbone.state_dict().items()}, tmp_path / "ResNet50.pt")
    features = metrics.RadImageNetFeatures(tmp_path / "ResNet50.pt")(images[:1], (0.0, 1.0))
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        resized = torch.nn.functional.interpolate(images[:1] * 2 - 1, size=(224, 224), mode="bilinear")
        expected = network(resized.expand(-1, 3, -1, -1))
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    torch.save(network.state_dict(), tmp_path / "other.pt")
    with pytest.raises(ScanError, match="other.pt: does not hold a ResNet-50 of RadImageNet"):
        metrics.RadImageNetFeatures(tmp_path / "other.pt")


@pytest.mark.slow
def test_inception_is_that_of_torch_fidelity_for_8_bits(images, tmp_path, monkeypatch):
    fidelity = pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    network = pytest.importorskip("torchvision.models").inception_v3(num_classes=1008, aux_logits=False, weights=None)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / INCEPTION)
    features = metrics.InceptionFeatures()(images, (0.0, 1.0))
    bytes_of_images = (images * 255).round().byte().expand(-1, 3, -1, -1)
    expected = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])(bytes_of_images)[0]
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)
    assert features.shape == (2, 2048)


def exact_sample(rng, mean, covariance, num):
    """A sample whose mean and covariance are exactly these."""
    z = rng.normal(size=(num, len(mean)))
    z -= z.mean(axis=0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    return z @ np.linalg.cholesky(covariance).T + mean


def test_the_frechet_distance_is_that_by_the_root_of_the_matrix():
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 6, 6))
    a, b = (exact_sample(rng, rng.normal(size=6), root @ root.T, 50) for root in roots)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    few = rng.normal(size=(2, 8, 30))  # fewer samples than features: they lie in 16 dimensions
    directions, _ = np.linalg.qr(np.concatenate(few).T)
    assert metrics.frechet_distance(*(few @ directions)) == pytest.approx(metrics.frechet_distance(*few))


def test_the_kernel_distance_is_unbiased_and_that_of_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    rng = np.random.default_rng(0)
    values = [metrics.kernel_distance(rng.normal(size=(12, 8)), rng.normal(size=(9, 8))) for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)
    a, b = rng.normal(size=(30, 12)), rng.normal(size=(30, 12)) + 0.3
    assert metrics.kernel_distance(a, b) == pytest.approx(float(kid.poly_mmd(*map(torch.from_numpy, (a, b)))), abs=1e-4)


def test_precision_and_recall_by_brute_force():
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(40, 3)), rng.normal(size=(30, 3)) * 1.5

    def covered(samples, others):
        radii = [sorted(np.linalg.norm(others - center, axis=1))[3] for center in others]
        inside = [any(np.linalg.norm(s - c) <= r for c, r in zip(others, radii, strict=True)) for s in samples]
        return np.array(inside, float)

    realistic, is_covered = metrics.precision_and_recall(real, made)
    np.testing.assert_array_equal(realistic, covered(made, real))
    np.testing.assert_array_equal(is_covered, covered(real, made))
    assert 0 < realistic.mean() < 1
