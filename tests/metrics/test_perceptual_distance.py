from pathlib import Path

import pytest
import torch

from monai_diffae.errors import MachineError, ScanError
from monai_diffae.metrics import PerceptualDistance
from monai_diffae.metrics.perceptual_distance import ALEXNET, pairwise_distance, read_alexnet

SHARED = Path(__file__).parents[2] / ".." / "shared" / "weights"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with random weights of AlexNet, as torchvision names them."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / ALEXNET
    torch.save(models.alexnet(weights=None).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def reference(weights):
    """The package's own network with the same weights."""
    lpips = pytest.importorskip("lpips")
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    state = torch.load(weights, weights_only=True)
    slices = {"slice1": [0], "slice2": [3], "slice3": [6], "slice4": [8], "slice5": [10]}
    for name, (number,) in slices.items():
        layer = getattr(network.net, name).get_submodule(str(number))
        layer.load_state_dict({key: state[f"features.{number}.{key}"] for key in ("weight", "bias")})
    return network


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 1, 64, 48, generator=generator).mul(2).sub(1).unbind(0)


def test_the_distance_is_that_of_the_package(weights, reference, pair):
    distance = PerceptualDistance(weights)
    expected = reference(*(images.expand(-1, 3, -1, -1) for images in pair)).flatten()
    torch.testing.assert_close(distance(*pair), expected, atol=1e-4, rtol=0)
    assert expected.min() > 0.01
    colour = [torch.rand(2, 3, 40, 40) for _ in range(2)]
    expected = reference(*(images * 2 - 1 for images in colour)).flatten()
    torch.testing.assert_close(distance(*colour, (0.0, 1.0)), expected, atol=1e-4, rtol=0)
    assert distance(pair[0], pair[0]).abs().max() == 0


def test_a_loss_gets_gradients(weights, pair):
    images = pair[0].clone().requires_grad_()
    PerceptualDistance(weights)(images, pair[1]).sum().backward()
    assert images.grad.any()


def test_two_channels_are_two_grey_images(weights, reference, pair):
    both = [torch.cat([images, images.flip(-1)], dim=1) for images in pair]
    expected = (PerceptualDistance(weights)(*pair) + PerceptualDistance(weights)(*(i.flip(-1) for i in pair))) / 2
    torch.testing.assert_close(PerceptualDistance(weights)(*both), expected)


def test_volumes_are_the_mean_over_three_planes(weights, reference):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 1, 32, 33, 34, generator=generator).unbind(0)
    expected = []
    for x, y in zip(a[:, 0] * 2 - 1, b[:, 0] * 2 - 1, strict=True):
        planes = [
            torch.stack([reference(p.expand(1, 3, -1, -1), q.expand(1, 3, -1, -1)).mean()
                         for p, q in zip(x.unbind(axis), y.unbind(axis), strict=True)]).mean()
            for axis in range(3)
        ]  # fmt: skip
        expected.append(torch.stack(planes).mean())
    torch.testing.assert_close(PerceptualDistance(weights)(a, b, (0.0, 1.0)), torch.stack(expected), atol=1e-4, rtol=0)


def test_pairs_of_draws(weights, reference, pair):
    distance = PerceptualDistance(weights)
    draws = torch.stack([*pair, pair[0].flip(-2)], dim=1)
    between = [distance(draws[:, i], draws[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(pairwise_distance(distance, draws, (-1.0, 1.0)), torch.stack(between).mean(dim=0))


def test_only_the_convolutions_are_read(weights, tmp_path):
    """A classifier without data, which keeps a file small, is nobody's business."""
    state = torch.load(weights, weights_only=True)
    state["classifier.1.weight"] = torch.zeros(1).expand(4096, 9216)
    torch.save(state, tmp_path / "small.pth")
    assert set(read_alexnet(tmp_path / "small.pth")) == {name for name in state if name.startswith("features.")}


def test_weights_that_are_missing_or_others(tmp_path, monkeypatch):
    pytest.importorskip("lpips")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MachineError, match=f"there is no {ALEXNET}; give the file, or put it where torch looks"):
        PerceptualDistance()
    (tmp_path / "a.pth").write_text("nothing")
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(ScanError, match=f"{name}: does not hold AlexNet's weights"):
            PerceptualDistance(tmp_path / name)


def test_without_the_package(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="the package lpips is not installed: pip install"):
        PerceptualDistance()


@pytest.mark.skipif(not SHARED.is_dir(), reason="AlexNet's weights are not on this machine")
def test_with_the_true_weights_it_is_the_published_distance(pair, monkeypatch):
    lpips = pytest.importorskip("lpips")
    monkeypatch.setenv("TORCH_HOME", str(SHARED))
    published = lpips.LPIPS(net="alex", verbose=False).eval()
    with torch.no_grad():
        expected = published(*(images.expand(-1, 3, -1, -1) for images in pair)).flatten()
    torch.testing.assert_close(PerceptualDistance()(*pair), expected, atol=1e-4, rtol=0)
