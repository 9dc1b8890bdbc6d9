import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor

from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.transforms import ToModelRangeD, ToModelRanged, ToModelRangeDict

IMAGE = torch.arange(1000.0).reshape(1, 10, 100)


def mapped(image, **options):
    return ToModelRanged("image", **options)({"image": image})["image"]


def test_percentiles():
    result = mapped(IMAGE)
    low, high = np.percentile(IMAGE, (0.5, 99.5))
    np.testing.assert_allclose(result, np.clip((IMAGE - low) / (high - low) * 2 - 1, -1, 1), atol=1e-5)
    assert mapped(IMAGE, clip=False).min() < -1
    assert mapped(IMAGE, clip=False).max() > 1


def test_window_minmax_none():
    ct = torch.tensor([[[-1000.0, -160, 40, 240, 3000]]])
    assert mapped(ct, method="window").flatten().tolist() == [-1, -1, 0, 1, 1]
    assert mapped(ct, method="window", window_hu=(-1000, 3000), model_range=(0, 1))[0, 0, 2].item() == pytest.approx(
        0.26
    )
    assert mapped(IMAGE, method="minmax", model_range=(0, 1)).max() == 1
    assert torch.equal(mapped(IMAGE / 1000, method="none"), IMAGE / 1000)


@given(scale=st.floats(1e-3, 1e6), shift=st.floats(-1e3, 1e3))
def test_the_scanners_units_do_not_matter(scale, shift):
    image = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    other = image * scale + shift * scale
    for method in ("percentiles", "minmax"):
        torch.testing.assert_close(mapped(other, method=method), mapped(image, method=method), atol=2e-3, rtol=0)


def test_channels_of_their_own_or_together():
    image = torch.cat([IMAGE, IMAGE * 50])
    apart, together = mapped(image, method="minmax"), mapped(image, method="minmax", channel_wise=False)
    torch.testing.assert_close(apart[0], apart[1])
    assert together[0].max() < -0.9


def test_type_and_geometry_stay():
    image = MetaTensor(IMAGE, affine=torch.diag(torch.tensor([2.0, 3, 1, 1])))
    result = mapped(image)
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, image.affine)
    assert mapped(IMAGE.numpy().astype(np.int16)).dtype == torch.float32
    assert ToModelRangeD is ToModelRangeDict is ToModelRanged


@pytest.mark.parametrize("method", ["percentiles", "minmax", "window", "none"])
def test_constant_results_are_refused_by_name(method):
    with pytest.raises(ScanError, match=r"^case7: "):
        ToModelRanged("image", method=method)({"image": torch.zeros(1, 4, 4), "id": "case7"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "z"},
        {"percentiles": (5, 5)},
        {"percentiles": (0, 101)},
        {"window_hu": (1, 0)},
        {"model_range": (1, -1)},
    ],
)
def test_wrong_parameters(wrong):
    with pytest.raises(ConfigError):
        ToModelRanged("image", **wrong)


@pytest.mark.parametrize("method", ["percentiles", "window", "minmax"])
@pytest.mark.parametrize("channel_wise", [True, False])
def test_back_to_the_scans_units(method, channel_wise):
    image = MetaTensor(torch.cat([IMAGE, IMAGE * 50 - 300]))
    transform = ToModelRanged("image", method=method, channel_wise=channel_wise, window_hu=(10, 20000))
    result = transform({"image": image})
    assert len(result["image"].applied_operations) == 1
    back = transform.inverse(result)["image"]
    assert not back.applied_operations
    assert not image.applied_operations
    inside = result["image"].abs() < 1
    torch.testing.assert_close(back[inside], image[inside], rtol=1e-5, atol=0.01)
    # what was clipped stays at the ends, which were inside the image's own
    assert back.max() <= image.max()
    assert back.min() >= image.min()


def test_back_without_a_method_or_a_record():
    transform = ToModelRanged("image", method="none", clip=False)
    image = MetaTensor(IMAGE / 1000)
    result = transform({"image": image})
    assert torch.equal(transform.inverse(result)["image"], image)
    assert not image.applied_operations
    plain = transform({"image": IMAGE})
    assert list(plain) == ["image"]  # nothing is recorded beside a tensor without meta data
    assert type(plain["image"]) is torch.Tensor
