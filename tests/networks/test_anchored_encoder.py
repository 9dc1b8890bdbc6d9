"""An anchored encoder: its first numbers are principal components of its branches, whatever is trained."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from monai_diffae.errors import ConfigError
from monai_diffae.networks import AnchoredEncoder, OrientedGradients, PooledVoxels, SemanticEncoder


def anchored(spatial_dims, channels=6, free_dropout=0.0, branches=1):
    torch.manual_seed(0)
    free = SemanticEncoder(spatial_dims, 1, z_channels=4, base_channels=8, channel_mult=(1, 2), num_res_blocks=1)
    pools = [PooledVoxels([2 * (n + 1)] * spatial_dims) for n in range(branches)]
    return AnchoredEncoder(free, pools, channels, free_dropout)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_z_sem_begins_with_the_principal_components_of_pooled_images(spatial_dims):
    images = torch.randn(40, 1, *[8] * spatial_dims) * torch.rand(40, *[1] * (spatial_dims + 1))
    encoder = anchored(spatial_dims, channels=3).eval()
    encoder.fit(images.split(15))
    z_sem = encoder(images).detach()
    cells = images.unflatten(2, (2, 4)).mean(3)
    for axis in range(3, spatial_dims + 2):
        cells = cells.unflatten(axis, (2, 4)).mean(axis + 1)
    expected = PCA(3, whiten=True, svd_solver="full").fit_transform(cells.flatten(1).numpy())
    np.testing.assert_allclose(z_sem[:, :3].abs().numpy(), np.abs(expected) * (40 / 39) ** 0.5, atol=1e-4)
    assert torch.equal(z_sem[:, 3:], encoder.free(images))
    assert torch.equal(encoder.project(encoder.features(images)), z_sem)
    assert torch.equal(torch.jit.script(encoder)(images), z_sem)


def test_branches_have_the_same_variance_and_the_last_components_are_not_scaled_up():
    images = torch.randn(200, 1, 16, 16)
    images[:, :, :8] *= 1e-3  # components after the 64th are nearly noise
    encoder = AnchoredEncoder(anchored(2).free, [PooledVoxels([16, 16])], 128, 0.0).eval()
    encoder.fit([images])
    stds = encoder(images)[:, :128].std(dim=0)
    assert stds[:64].allclose(torch.ones(64), atol=0.01)
    assert bool((stds.diff() < 1e-3).all())
    assert stds[127] < 0.6
    both = anchored(2, branches=2).eval()
    both.fit([images])
    variances = [(both.axes[:, part] != 0).any() for part in (slice(0, 4), slice(4, 20))]
    assert all(variances)


def test_few_images_give_few_components_twins_no_rounding_errors_and_without_variation_there_are_none():
    encoder = anchored(2).eval()
    assert not encoder.is_fitted
    encoder.fit([torch.randn(3, 1, 8, 8)])
    assert encoder.is_fitted
    assert encoder(torch.randn(5, 1, 8, 8))[:, :6].std(dim=0).gt(0).tolist() == [True, True, *[False] * 4]
    with pytest.raises(ConfigError, match="cannot be fitted to 4 images without variation"):
        anchored(2).fit([torch.ones(4, 1, 8, 8)])
    images = torch.randn(40, 1, 8, 8)
    images[1] = images[0]
    with_twins = AnchoredEncoder(anchored(2).free, [PooledVoxels([8, 8])], 64, 0.0).eval()
    with_twins.fit([images])
    assert with_twins(torch.randn(9, 1, 8, 8))[:, :64].abs().max() < 10


def test_only_the_free_encoder_is_trained_and_dropped():
    encoder = anchored(2, free_dropout=0.5)
    encoder.branches.append(nn.BatchNorm2d(1))
    encoder.train()
    assert not encoder.branches[1].training
    encoder.branches.pop(1)
    images = torch.randn(64, 1, 8, 8)
    encoder.fit([images])
    z_sem = encoder(images)
    dropped = (z_sem[:, 6:] == 0).all(dim=1)
    assert 10 < int(dropped.sum()) < 54
    assert torch.equal(z_sem[:, :6], encoder.eval()(images)[:, :6])
    assert {name.split(".")[0] for name, weight in encoder.named_parameters() if weight.requires_grad} == {"free"}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_oriented_gradients_of_a_ramp_point_along_it_whatever_its_contrast(spatial_dims):
    ramp = torch.linspace(-1, 1, 16).reshape(1, 1, 16, *[1] * (spatial_dims - 1)).expand(2, 1, *[16] * spatial_dims)
    gradients = OrientedGradients([16] * spatial_dims)
    features = gradients(ramp).unflatten(1, (-1, len(gradients.directions)))
    assert features.shape[1:] == (4**spatial_dims, 3**spatial_dims - 1)
    cosines = gradients.directions[:, 0].clamp(min=0).square()
    assert features.allclose((cosines / cosines.norm()).expand_as(features), atol=0.05)
    assert gradients(ramp * 0.8 + 0.1).allclose(gradients(ramp), atol=0.05)
    assert not gradients(torch.ones_like(ramp)).any()
    assert torch.equal(torch.jit.script(gradients)(ramp), gradients(ramp))


def test_oriented_gradients_are_those_of_a_loop():
    image = np.random.default_rng(0).uniform(-1, 1, (12, 8)).astype(np.float32)
    gradients = OrientedGradients([12, 8])
    ours = gradients(torch.from_numpy(image)[None, None]).numpy().reshape(3, 2, 8)
    steps = np.stack(np.gradient(np.pad(image, 1, "edge")), axis=-1)[1:-1, 1:-1]
    for row, column in np.ndindex(3, 2):
        cell = steps[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(-1, 2)
        cosines = cell / np.linalg.norm(cell, axis=1, keepdims=True) @ gradients.directions.numpy().T
        expected = (np.clip(cosines, 0, None) ** 2 * np.linalg.norm(cell, axis=1, keepdims=True)).mean(axis=0)
        expected /= np.sqrt((expected**2).sum() + 0.04**2)
        np.testing.assert_allclose(ours[row, column], expected, atol=1e-5)
