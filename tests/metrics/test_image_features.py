import pytest
import torch

from monai_diffae.errors import MachineError, ScanError
from monai_diffae.metrics import InceptionFeatures, RadImageNetFeatures
from monai_diffae.metrics.image_features import INCEPTION


@pytest.fixture
def images():
    return torch.rand(2, 1, 40, 32, generator=torch.Generator().manual_seed(0))


def test_radimagenet_is_torchvisions_network_with_other_weights(images, tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    network = models.resnet50(weights=None).eval()
    backbone = torch.nn.Sequential(*list(network.children())[:9])
    torch.save({f"backbone.{name}": value for name, value in backbone.state_dict().items()}, tmp_path / "ResNet50.pt")
    features = RadImageNetFeatures(tmp_path / "ResNet50.pt")(images, (0.0, 1.0))
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        resized = torch.nn.functional.interpolate(images * 2 - 1, size=(224, 224), mode="bilinear")
        expected = network(resized.expand(-1, 3, -1, -1))
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    torch.save(network.state_dict(), tmp_path / "other.pt")
    with pytest.raises(ScanError, match="other.pt: does not hold a ResNet-50 of RadImageNet"):
        RadImageNetFeatures(tmp_path / "other.pt")


def test_inception_without_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MachineError, match=f"there is no {INCEPTION} where torch looks for it"):
        InceptionFeatures()


@pytest.mark.slow
def test_inception_is_that_of_pytorch_fid(images, tmp_path, monkeypatch):
    inception = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    torch.manual_seed(0)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda url, progress: None)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
        network = inception.fid_inception_v3()
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / INCEPTION)
    monkeypatch.setattr(
        inception, "load_state_dict_from_url",
        lambda url, progress: torch.load(tmp_path / "checkpoints" / url.rpartition("/")[2], weights_only=True),
    )  # fmt: skip
    features = InceptionFeatures()(images, (0.0, 1.0))
    with torch.no_grad():
        expected = inception.InceptionV3().eval()(images.expand(-1, 3, -1, -1))[0].flatten(1)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)
    assert features.shape == (2, 2048)
