"""Diff-AE on the latents of a first stage: the inferer takes and returns images."""

import pytest
import torch
from tiny_bundles import small_autoencoder, tiny_kl

from monai_diffae import DiffusionAutoencoderInferer, DiffusionSchedule
from monai_diffae.engines import AutoencoderPrepareBatch, FixedPrepareBatch
from monai_diffae.errors import ConfigError
from monai_diffae.networks import FirstStage

SCHEDULE = DiffusionSchedule(schedule="rectified_flow", prediction="v")


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, 16, 16, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def first_stage(images):
    return measured(3, images)


def measured(spatial_dims, images):
    first_stage = FirstStage(tiny_kl(spatial_dims)).eval()
    first_stage.measure(images)
    return first_stage


@pytest.fixture(scope="module")
def network():
    return small_autoencoder(3, in_channels=3)


@pytest.fixture(scope="module")
def inferer(first_stage):
    return DiffusionAutoencoderInferer(SCHEDULE, steps=15, first_stage=first_stage)


def test_inversion_and_decoding_lose_nothing_but_what_the_first_stage_loses(inferer, first_stage, network, images):
    plain = DiffusionAutoencoderInferer(SCHEDULE, steps=15)
    latents = first_stage.encode(images)
    z_sem = inferer.encode(images, network)
    torch.testing.assert_close(z_sem, plain.encode(latents, network))
    x_T = inferer.invert(images, network, z_sem)
    assert x_T.shape == latents.shape == (3, *inferer.x_T_shape((1, 16, 16, 8)))
    torch.testing.assert_close(x_T, plain.invert(latents, network, z_sem))
    decoded = inferer.decode(z_sem, network, x_T)
    assert decoded.shape == images.shape
    torch.testing.assert_close(decoded, first_stage.decode(plain.decode(z_sem, network, x_T)))
    error = (decoded - first_stage.decode(latents)).square().mean()
    assert error < 1e-3 * first_stage.decode(latents).square().mean()


def test_latents_are_never_clipped(first_stage):
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v", clip_range=(-1, 1))
    with pytest.raises(ConfigError, match="latents have no bounds: set it to null"):
        DiffusionAutoencoderInferer(schedule, first_stage=first_stage)
    assert DiffusionAutoencoderInferer(schedule, clip=False, first_stage=first_stage).clip_range is None


def test_a_2d_first_stage_encodes_the_slices_of_volumes():
    volumes = torch.rand(2, 1, 16, 16, 3) * 2 - 1
    first_stage, network = measured(2, volumes[..., 0]), small_autoencoder(in_channels=3)
    inferer = DiffusionAutoencoderInferer(SCHEDULE, steps=2, first_stage=first_stage)
    z_sem, x_T = inferer.encode(volumes, network), inferer.invert(volumes, network)
    assert z_sem.shape == (2, 3, 4)
    assert x_T.shape == (2, *inferer.x_T_shape((1, 16, 16, 3))) == (2, 3, 8, 8, 3)
    assert inferer.decode(z_sem, network, x_T).shape == volumes.shape


@pytest.mark.parametrize("kind", [AutoencoderPrepareBatch, FixedPrepareBatch])
def test_a_batch_becomes_latents_before_noise_is_added(first_stage, images, kind):
    counts = {} if kind is AutoencoderPrepareBatch else {"num_images": 3}
    prepare = kind(SCHEDULE, encoder_key="seen", first_stage=first_stage, **counts)
    batch = {"image": images, "seen": -images, "index": torch.arange(3)}
    x0, target, _, more = prepare(batch, "cpu")
    torch.testing.assert_close(x0, first_stage.encode(images))
    torch.testing.assert_close(more["condition"], first_stage.encode(-images))
    torch.testing.assert_close(target, SCHEDULE.target(x0, more["noise"], more["timesteps"]))
