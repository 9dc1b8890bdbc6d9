"""Metrics of images, of x_T and of trainings."""

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from monai_diffae import DiffusionAutoencoderInferer, DiffusionSchedule, metrics
from monai_diffae.latents import copying_ratio, p_values
from monai_diffae.metrics.codes import changed_views, level_losses


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    images = nn.functional.interpolate(torch.rand(2, 1, 8, 8, generator=generator), scale_factor=5, mode="bilinear")
    noisy = (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    return images * 2 - 1, noisy * 2 - 1


def scikits_ssim(a, b):
    """The SSIM of two images from 0 to 2: MONAI's averages where the whole window of 11 lies inside the image."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    return structural_similarity(a, b, data_range=2, **options)[1][(slice(5, -5),) * a.ndim].mean()


def test_reconstruction_errors_are_those_of_scikit_image(pair):
    errors = metrics.reconstruction_errors(*pair)
    for i, (a, b) in enumerate(zip(*(x[:, 0].double().numpy() for x in pair), strict=True)):
        assert errors["mse"][i] == pytest.approx(np.mean((a - b) ** 2), rel=1e-5)
        assert errors["psnr"][i] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=2), rel=1e-5)
        assert errors["ssim"][i] == pytest.approx(scikits_ssim(a + 1, b + 1), abs=1e-4)


def test_a_models_range_changes_mse_alone(pair):
    images, made = pair
    narrow = metrics.reconstruction_errors((images + 1) / 2, (made + 1) / 2, (0.0, 1.0))
    wide = metrics.reconstruction_errors(images, made)
    torch.testing.assert_close(wide["mse"], 4 * narrow["mse"])
    torch.testing.assert_close(wide["psnr"], narrow["psnr"])
    torch.testing.assert_close(wide["ssim"], narrow["ssim"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 16, 16), (1, 1, 8, 8, 8)])
def test_small_images_colour_and_volumes(shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same, other = metrics.reconstruction_errors(images, images), metrics.reconstruction_errors(images, images.flip(-1))
    torch.testing.assert_close(same["ssim"], torch.ones(len(images)), atol=1e-5, rtol=0)
    assert torch.isinf(same["psnr"]).all()
    assert (other["ssim"] < 0.9).all()
    assert all(values.shape == (len(images),) for values in other.values())
    for contrast in (1, 1e-2, 1e-4):
        low = images * contrast
        assert (metrics.reconstruction_errors(low, low + 1e-7)["ssim"] <= 1).all()


@pytest.fixture
def large():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, 24, 24, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(192, 200), mode="bilinear")
    noisy = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    return images * 2 - 1, noisy * 2 - 1


def test_ms_ssim_is_that_of_torchmetrics(large):
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    values = metrics.ImageQuality((192, 200))(*large)["ms_ssim"]
    images, made = (stack + 1 for stack in large)
    expected = torch.stack([
        torchmetrics.multiscale_structural_similarity_index_measure(made[i : i + 1], images[i : i + 1], data_range=2.0)
        for i in range(2)
    ])  # fmt: skip
    torch.testing.assert_close(values, expected, atol=1e-4, rtol=0)
    assert (values < 0.99).all()
    small = {"ms_ssim": "images of 176 x 175 are too small; it needs 176 along each axis"}
    assert (metrics.ImageQuality((176, 175)).omitted(), metrics.ImageQuality((176, 176)).omitted()) == (small, {})


def test_ssim_of_volumes_has_a_window_in_3d():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 5, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(20, 22, 24), mode="trilinear") * 2 - 1
    made = images + 0.1 * torch.randn(images.shape, generator=generator)
    value = metrics.ImageQuality((20, 22, 24))(images, made)["ssim"]
    a, b = (stack[0, 0].double().numpy() + 1 for stack in (images, made))
    assert float(value) == pytest.approx(scikits_ssim(a, b), abs=1e-4)
    slices = torch.stack([metrics.reconstruction_errors(images[..., i], made[..., i])["ssim"] for i in range(24)])
    assert abs(float(slices.mean() - value)) > 0.01


def test_diversity_is_the_standard_deviation_of_the_draws():
    generator = torch.Generator().manual_seed(0)
    for num in (2, 5):
        draws = 3 * torch.randn(4, num, 1, 64, 64, generator=generator)
        np.testing.assert_allclose(metrics.ImageQuality((64, 64)).diversity(draws)["diversity"], 3, rtol=0.05)
    same = torch.randn(2, 1, 1, 16, 16, generator=generator).expand(2, 4, 1, 16, 16)
    assert metrics.ImageQuality((16, 16)).diversity(same)["diversity"].abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 1, 24, 24, 24)])
def test_noise_is_noise_and_smooth_noise_of_the_same_spread_is_not(shape):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = metrics.noise_statistics(noise)
    assert all(values.shape == (2,) for values in found.values())
    assert found["mean"].abs().max() < 0.05
    assert (found["std"] - 1).abs().max() < 0.05
    assert found["neighbor_correlation"].abs().max() < 0.05
    smooth = sum(noise.roll(1, axis) for axis in range(2, noise.ndim)) + noise
    smooth = smooth / smooth.std()
    assert (metrics.noise_statistics(smooth)["std"] - 1).abs().max() < 0.05
    assert metrics.noise_statistics(smooth)["neighbor_correlation"].min() > 0.2


def test_noise_statistics_that_are_not_defined_are_nan():
    for single in (torch.zeros(2, 4, 1, 1), torch.ones(1, 1, 4, 4)):
        assert metrics.noise_statistics(single)["neighbor_correlation"].isnan().all()


FLOOR, SIGMA, FRACTION = 0.1, 1.0, 0.01


def residuals_of_cases(count, seed, size=12):
    """Residuals whose size varies over the image and between cases, as those of real scans do."""
    rng = torch.Generator().manual_seed(seed)
    pattern = torch.linspace(0.1, 1.0, size)[None, None, None, :]
    scale = torch.randn(count, 1, 1, 1, generator=rng).mul(0.3).exp()
    noise = torch.randn(count, 1, size, size, generator=rng)
    return metrics.smoothed_residuals(pattern * scale * noise, torch.zeros(count, 1, size, size), SIGMA)


def test_p_values_of_new_normal_cases_are_uniform():
    """Without cross-fitting, new cases would look unusual too often."""
    p = []
    for trial in range(20):
        residuals = residuals_of_cases(20, 2 * trial)
        scores = metrics.highest_mean(
            metrics.cross_fitted_maps(residuals, list(range(20)), FLOOR, SIGMA), FRACTION
        ).numpy()
        spread = metrics.residual_spread(residuals.square().mean(0), FLOOR)
        new = metrics.highest_mean(
            metrics.anomaly_maps(residuals_of_cases(50, 2 * trial + 1), spread, SIGMA), FRACTION
        ).numpy()
        p.append(p_values(new, scores, np.zeros(50, bool)))
    for level in (0.05, 0.1, 0.25, 0.5):
        possible = np.floor(level * 21 + 1e-9) / 21  # p-values are discrete
        assert possible - 0.08 < np.mean(np.concatenate(p) <= level) < possible + 0.03


def test_a_group_is_never_compared_with_itself():
    residuals = residuals_of_cases(6, seed=0)
    groups = [0, 0, 1, 1, 2, 2]
    maps = metrics.cross_fitted_maps(residuals, groups, FLOOR, SIGMA)
    without_first = metrics.residual_spread(residuals[2:].square().mean(0), FLOOR)
    torch.testing.assert_close(maps[:2], metrics.anomaly_maps(residuals[:2], without_first, SIGMA))


def test_voxels_that_never_vary_do_not_dominate_and_the_score_is_that_of_the_most_unusual():
    mean_squares = torch.ones(1, 12, 12)
    mean_squares[:, :, :6] = 0
    spread = metrics.residual_spread(mean_squares, FLOOR)
    assert spread.min() > 0.2
    assert metrics.residual_spread(torch.zeros(1, 12, 12), FLOOR).min() > 0
    maps = torch.zeros(2, 1, 10, 10)
    maps[1, 0, 0, 0] = 5
    assert [metrics.highest_mean(maps, share).tolist() for share in (0.01, 0.02, 1e-6)] == [[0, 5], [0, 2.5], [0, 5]]


def test_what_each_view_does():
    images = torch.arange(12.0).reshape(1, 1, 3, 4)
    views = changed_views(images, torch.ones_like(images), (0.0, 20.0))
    assert views["flip up-down"][0, 0, 0].tolist() == [8, 9, 10, 11]
    assert views["flip left-right"][0, 0, 0].tolist() == [3, 2, 1, 0]
    assert views["noise 5 %"][0, 0, 0].tolist() == [1, 2, 3, 4]
    assert views["shift 2 left-right"][0, 0, 0].tolist() == [0, 0, 0, 1]
    assert views["shift 1 up-down"][0, 0, :, 0].tolist() == [0, 0, 4]
    torch.testing.assert_close(views["intensity x 0.9"], images * 0.9)
    volume = torch.rand((2, 2, 8, 6, 4), generator=torch.Generator().manual_seed(0)) * 2 - 1
    views = changed_views(volume, torch.randn(volume.shape, generator=torch.Generator().manual_seed(1)))
    assert len(views) == 13
    for view in views.values():
        assert view.shape == volume.shape
        assert view.abs().max() <= 1
        assert not torch.equal(view, volume)


OWN, OTHER = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]), torch.tensor([2.0, 2.0, 6.0, 4.0, 26.0])


@pytest.mark.parametrize("cuts", [[5], [2, 3], [4, 1]])
def test_every_image_counts_once_whatever_the_batches(cuts):
    batches = list(zip(OWN.split(cuts), OTHER.split(cuts), strict=True))
    evaluator = Engine(lambda _, batch: {"loss": batch[0], "loss_other": batch[1]})
    metrics.ValidationLoss().attach(evaluator, "loss")
    metrics.ValidationLoss("loss_other").attach(evaluator, "loss_other")
    metrics.ZSemUsage().attach(evaluator, "usage")
    for _ in range(2):  # the second run starts from nothing
        assert evaluator.run(batches).metrics == pytest.approx({"loss": 4.0, "loss_other": 8.0, "usage": 2.0})


def test_the_usage_of_z_sem_is_not_measured_with_one_image():
    """Its z_sem would be compared with itself, and the usage be 1, as of a decoder that ignores z_sem."""
    assert math.isnan(metrics.ValidationLoss().compute())
    usage = metrics.ZSemUsage()
    usage.update((torch.tensor([1.0]), torch.tensor([1.0])))
    assert math.isnan(usage.compute())


class Knowing(nn.Module):
    """Answers with the z_sem that it is given, spread over the image."""

    def forward(self, x, t, z_sem):
        return z_sem[:, :1, None, None].expand_as(x)


def test_the_loss_of_a_level_is_the_targets_with_each_code_on_the_same_noisy_image():
    x0, noise = torch.zeros(3, 1, 4, 4), torch.ones(3, 1, 4, 4)
    inferer = DiffusionAutoencoderInferer(DiffusionSchedule(prediction="eps"))
    codes = {"right": torch.ones(3, 2), "wrong": torch.tensor([[1.0], [2.0], [3.0]])}
    losses = level_losses(x0, Knowing(), codes, inferer, 700, noise)
    assert losses["right"].tolist() == [0, 0, 0]
    assert losses["wrong"].tolist() == [0, 1, 4]


@pytest.fixture
def vectors():
    return torch.randn(3, 300, 5, generator=torch.Generator().manual_seed(0)).unbind()


def attached(samples, train):
    engine = Engine(lambda _, batch: {"image": batch})
    metrics.CopyingRatio(lambda count: samples[:count], train, num_samples=40).attach(engine, "copying_ratio")
    return engine


def test_the_copying_ratio_takes_held_out_z_from_the_evaluators_batches(vectors):
    train, held_out, samples = vectors
    engine = attached(samples, train)
    for _ in range(2):  # what an earlier validation saw is forgotten
        engine.run(held_out.split(64))
        assert engine.state.metrics["copying_ratio"] == pytest.approx(copying_ratio(samples[:40], train, held_out))


def test_what_has_no_copying_ratio_is_nan_with_one_warning_and_ends_no_training(vectors, caplog):
    train, held_out, samples = vectors
    for engine, batches in ((attached(samples, train), train), (attached(samples * math.inf, train), held_out)):
        caplog.clear()
        for _ in range(3):
            engine.run(batches.split(64))
            assert math.isnan(engine.state.metrics["copying_ratio"])
        warnings = [record.getMessage()[:20] for record in caplog.records if record.levelname == "WARNING"]
        assert warnings == ["copying_ratio is nan"]
