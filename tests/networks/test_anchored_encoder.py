"""An anchored encoder: its first numbers are principal components of its branches, whatever is trained."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from monai_diffae.errors import CohortError
from monai_diffae.networks import AnchoredEncoder, PatchWords, PooledVoxels, SemanticEncoder


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
    expected = PCA(3, svd_solver="full").fit_transform(cells.flatten(1).numpy())
    expected /= np.sqrt(expected.var(axis=0).mean())
    np.testing.assert_allclose(z_sem[:, :3].abs().numpy(), np.abs(expected), atol=1e-4)
    assert torch.equal(z_sem[:, 3:], encoder.free(images))
    assert torch.equal(encoder.project(encoder.features(images)), z_sem)
    assert torch.equal(torch.jit.script(encoder)(images), z_sem)


def test_branches_have_the_same_variance_and_components_keep_their_proportions():
    images = torch.randn(200, 1, 16, 16)
    encoder = AnchoredEncoder(anchored(2).free, [PooledVoxels([2, 2]), PooledVoxels([1, 1])], 5, 0.0).eval()
    encoder.fit([images])
    pooled = [branch(images) for branch in encoder.branches]
    scaled = torch.cat([part / part.var(dim=0, correction=0).sum().sqrt() for part in pooled], dim=1)
    expected = torch.linalg.eigvalsh(torch.cov(scaled.T, correction=0)).flip(0)
    variances = encoder(images)[:, :5].var(dim=0, correction=0)
    assert torch.allclose(variances[:4], expected[:4] / expected[:4].mean(), rtol=1e-3)


def test_few_images_give_few_components_twins_no_rounding_errors_and_without_variation_there_are_none():
    encoder = anchored(2).eval()
    assert not encoder.is_fitted
    encoder.fit([torch.randn(3, 1, 8, 8)])
    assert encoder.is_fitted
    assert encoder(torch.randn(5, 1, 8, 8))[:, :6].std(dim=0).gt(0).tolist() == [True, True, *[False] * 4]
    with pytest.raises(CohortError, match="cannot be fitted to 4 images without variation"):
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


@pytest.mark.parametrize(("spatial_dims", "channels"), [(2, 2), (3, 1)])
def test_patch_words_are_those_of_a_loop_and_depend_little_on_exposure(spatial_dims, channels):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(-1, 1, (12, channels, *[9] * spatial_dims)).astype(np.float32))
    words = PatchWords([9] * spatial_dims, channels, num_words=7, patch=3, cells=1)
    words.fit(images)
    filters = words.filters.flatten(1).double().numpy()
    found = []
    for corner in np.ndindex(*[7] * spatial_dims):
        patch = images[0][(slice(None), *(slice(start, start + 3) for start in corner))].double().numpy().ravel()
        white = filters @ (patch - patch.mean()) / np.sqrt(patch.var() + 0.01) - words.offset.double().numpy()
        distances = np.linalg.norm(white - words.words.double().numpy(), axis=1)
        found.append(np.clip(distances.mean() - distances, 0, None))
    np.testing.assert_allclose(words(images)[0].numpy(), np.mean(found, axis=0), atol=1e-4)
    assert words(images * 0.8 + 0.1).allclose(words(images), atol=0.02)
    assert words(images).allclose(torch.cat([words(image[None]) for image in images]), atol=1e-5)
    assert torch.equal(torch.jit.script(words)(images), words(images))


def test_an_anchored_encoder_finds_words_before_its_components_and_stores_both():
    images = torch.rand(20, 1, 40, 40)
    encoder, again = (AnchoredEncoder(anchored(2).free, [PatchWords([40, 40], num_words=9)], 6) for _ in range(2))
    encoder.fit(images.split(6))
    assert encoder.branches[0].words.any(dim=1).all()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(images), encoder.eval()(images))
    assert encoder(images)[:, :6].var(dim=0, correction=0).mean().item() == pytest.approx(1, rel=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        anchored_numbers = encoder(images)[:, :6]
    assert torch.equal(anchored_numbers, encoder(images)[:, :6])
    PatchWords([8, 8], num_words=9).fit(torch.rand(4, 1, 8, 8))  # one patch each
    with pytest.raises(CohortError, match="the training images have no contrast"):
        PatchWords([8, 8], num_words=9).fit(torch.zeros(4, 1, 8, 8))


@pytest.mark.parametrize("size", [[12, 12], [8, 8, 8]])
def test_asymmetry_is_that_of_left_and_right(size):
    images, axis = torch.rand(30, 1, *size), 2 if len(size) == 3 else -1
    words = PatchWords(size, num_words=5, asymmetry=True)
    words.fit(images)
    torch.testing.assert_close(words(images.flip([axis])), words(images))
    assert words(images).mean() > 0.01
    torch.testing.assert_close(words(images + images.flip([axis])), torch.zeros(30, words.out_features))
