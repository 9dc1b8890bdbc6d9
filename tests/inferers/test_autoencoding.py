import pytest
import torch
from monai.data import MetaTensor
from tiny_bundles import small_autoencoder

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer, encode_exactly
from monai_diffae.inferers.autoencoding import FastDecoder
from monai_diffae.inferers.reconstruction import images_at_once
from monai_diffae.networks import preset


@pytest.fixture
def inferer():
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v")
    return DiffusionAutoencoderInferer(schedule, steps=20, clip=False)


@pytest.fixture
def evaluations(network):
    """The batch size of each evaluation of the UNet."""
    sizes = []
    hook = network.unet.stem.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    yield sizes
    hook.remove()


def errors_of(decoded, images):
    return (decoded - images).square().mean(dim=(1, 2, 3))


def test_a_call_is_the_training_forward_for_a_code_and_for_an_image(inferer, network, images):
    eps, t = torch.randn_like(images), torch.tensor([3, 400, 999])
    from_image = inferer(images, network, noise=eps, timesteps=t, condition=images)
    from_code = inferer(images, network, noise=eps, timesteps=t, condition=network.encode(images))
    torch.testing.assert_close(from_image, from_code)
    torch.testing.assert_close(from_image, network(inferer.schedule.q_sample(images, eps, t), t, images))


@pytest.mark.goal(id="R24")
def test_a_call_with_images_and_network_alone_reconstructs_to_the_bit(inferer, network, images):
    expected = inferer.reconstruct(images, network, mode="x_T")
    assert torch.equal(inferer(images, network), expected)
    tracked = inferer(MetaTensor(images), network)  # as MONAI Label calls it
    assert torch.equal(tracked, expected)
    assert type(tracked) is torch.Tensor
    with pytest.raises(ConfigError, match="give all of them, or none"):
        inferer(images, network, noise=images)


def test_inversion_and_decoding_reproduce_the_image_and_other_noise_does_not(inferer, network, images):
    z_sem = inferer.encode(images, network)
    x_T = inferer.invert(images, network, z_sem)
    assert not z_sem.requires_grad
    assert not x_T.requires_grad
    torch.testing.assert_close(inferer.invert(images, network), x_T)  # z_sem is computed if it is not given
    decoded = inferer.decode(z_sem, network, x_T)
    noise = torch.randn_like(x_T)
    from_noise = inferer.decode(z_sem, network, noise)
    error = (decoded - images).square().mean()
    assert error < 1e-3
    assert (from_noise - images).square().mean() > 100 * error
    torch.testing.assert_close(inferer.reconstruct(images, network), decoded)
    torch.testing.assert_close(inferer.reconstruct(images, network, mode="z_sem", x_T=noise), from_noise)


@pytest.mark.goal(id="R24")
def test_more_steps_reconstruct_better_and_as_well_as_before(inferer, network, images, record_property):
    """The bounds are three times what was measured; a worse solver or inversion exceeds them."""
    bounds = {5: 3.5e-4, 10: 6.2e-6, 20: 1.3e-6}
    errors = {}
    for steps in bounds:
        few = inferer.replace(steps=steps, invert_tolerance=None)
        errors[steps] = float((few.reconstruct(images, network) - images).square().mean())
    record_property("figure", ", ".join(f"MSE {error:.1e} with {steps} steps" for steps, error in errors.items()))
    assert sorted(errors.values(), reverse=True) == list(errors.values())
    assert all(errors[steps] < bound for steps, bound in bounds.items()), errors


@pytest.mark.goal(id="R24")
def test_a_round_trip_refines_only_the_images_that_are_not_reproduced(inferer, network, images, evaluations):
    z_sem = inferer.encode(images, network)

    def round_trip(tolerance):
        evaluations.clear()
        few = inferer.replace(steps=5, invert_tolerance=tolerance)
        x_T, decoded = few.round_trip(images, network, z_sem)
        num_evaluations = len(evaluations)
        torch.testing.assert_close(decoded, few.decode(z_sem, network, x_T), atol=1e-5, rtol=1e-5)
        return x_T, errors_of(decoded, images), num_evaluations

    plain, errors, num_plain = round_trip(None)
    assert num_plain == 10
    between = float(errors.sort().values[:2].mean())  # one image is reproduced, two are not
    refined, refined_errors, num_refined = round_trip(between)
    assert num_refined > num_plain
    is_reproduced = errors <= between
    assert is_reproduced.sum() == 1
    assert torch.equal(refined[is_reproduced], plain[is_reproduced])
    assert (refined_errors[~is_reproduced] <= between).all()
    exact_errors = round_trip(float(errors.min()) / 10)[1]
    assert (exact_errors < errors / 10).all()


@pytest.mark.goal(id="R24")
def test_a_warning_is_logged_if_even_a_refinement_does_not_reproduce_an_image(inferer, images, caplog):
    class Rough(torch.nn.Module):  # a network that no solver can follow
        def encode(self, x):
            return torch.zeros(len(x), 4)

        def forward(self, x, t, z):
            return 20 * torch.sin(50 * x)

    DiffusionAutoencoderInferer(inferer.schedule, steps=3).round_trip(images, Rough().eval())
    assert "inversion: 3 of 3 images are not reproduced within a mean squared error of 0.001" in caplog.text


@pytest.mark.parametrize(("solver", "bounds"), [("adams", (0, 7, 60)), ("heun", (7, 40))])
def test_the_evaluations_of_a_round_trip_can_be_bounded(inferer, network, images, evaluations, caplog, solver, bounds):
    few = inferer.replace(solver=solver, steps=5, invert_tolerance=1e-12)
    z_sem = few.encode(images, network)
    plain = few.replace(invert_tolerance=None).round_trip(images, network, z_sem)
    for bound in bounds:
        caplog.clear()
        evaluations.clear()
        x_T, decoded = few.round_trip(images, network, z_sem, max_evaluations=bound)
        assert len(evaluations) <= few.invert_steps + few.steps + bound * len(images)
        assert "3 of 3 images are not reproduced" in caplog.text
        assert (errors_of(decoded, images) <= errors_of(plain[1], images)).all()  # the better one is kept
        torch.testing.assert_close(few.decode(z_sem, network, x_T), decoded, atol=1e-5, rtol=1e-5)
        if bound < 20 or solver == "adams":
            assert torch.equal(x_T, plain[0]) == (bound < 20)


def test_volumes_are_processed_slice_by_slice_by_a_2d_network(inferer, network, evaluations):
    inferer = inferer.replace(steps=3, batch_size=4, invert_tolerance=None)
    volumes = torch.rand(2, 1, 16, 16, 5) * 2 - 1
    z_sem = inferer.encode(volumes, network)
    x_T = inferer.invert(volumes, network, z_sem)
    decoded = inferer.decode(z_sem, network, x_T)
    assert z_sem.shape == (2, 5, 4)
    assert x_T.shape == decoded.shape == volumes.shape
    assert max(evaluations) == 4
    single = volumes[1:, ..., 2]
    torch.testing.assert_close(z_sem[1:, 2], inferer.encode(single, network))
    torch.testing.assert_close(x_T[1:, ..., 2], inferer.invert(single, network), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decoded[1:, ..., 2], inferer.reconstruct(single, network), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inferer.reconstruct(volumes, network), decoded)


def test_new_noise_follows_from_x_T_and_is_not_inverted(inferer, network, images):
    z_sem, x_T = inferer.encode(images, network), torch.randn(images.shape)
    plain, noisy = inferer.replace(solver="ddim", steps=5), inferer.replace(solver="ddim", steps=5, eta=1)
    decoded = noisy.decode(z_sem, network, x_T)
    alone = noisy.replace(batch_size=1).decode(z_sem.flip(0), network, x_T.flip(0)).flip(0)
    torch.testing.assert_close(alone, decoded, atol=1e-5, rtol=1e-5)
    assert (errors_of(decoded, plain.decode(z_sem, network, x_T)) > 1e-3).all()
    with pytest.raises(ConfigError, match="eta is 1"):
        noisy.round_trip(images, network)
    with pytest.raises(ConfigError, match="eta is 0.5; only the solver ddim"):
        inferer.replace(eta=0.5)


def test_in_autocast_the_network_is_fast_and_the_solver_exact(inferer, network, images):
    inferer = inferer.replace(steps=5)
    exact = inferer.reconstruct(images, network)
    with torch.autocast("cpu", torch.bfloat16):
        z_sem = inferer.encode(images, network)
        x_T = inferer.invert(images, network, z_sem)
        decoded = inferer.decode(z_sem, network, x_T)
    assert z_sem.dtype == x_T.dtype == decoded.dtype == torch.float32
    assert not torch.equal(decoded, exact)  # the network did compute in bfloat16
    torch.testing.assert_close(decoded, exact, atol=0.1, rtol=0)
    in_half = inferer.reconstruct(images.bfloat16(), network.bfloat16())
    assert in_half.dtype == torch.float32
    torch.testing.assert_close(in_half, images, atol=0.2, rtol=0)


def test_settings_and_inputs_that_would_give_wrong_results_silently_are_refused(inferer, network, images):
    with pytest.raises(ConfigError, match="inversion: 'exact' is not one of implicit, ddim"):
        DiffusionAutoencoderInferer(inferer.schedule, inversion="exact")
    with pytest.raises(ConfigError, match="steps is 0; it must be a whole number, at least 1"):
        DiffusionAutoencoderInferer(inferer.schedule, steps=0)
    with pytest.raises(ConfigError, match="steps is 5000; it must be between 1 and 1999"):
        DiffusionAutoencoderInferer(inferer.schedule, solver="heun", steps=5000)
    z_sem, x_T = inferer.encode(images, network), torch.zeros_like(images)
    not_finite = torch.full_like(images, torch.nan)
    for call, *arguments in (
        (inferer.encode, not_finite, network), (inferer.invert, not_finite, network, z_sem),
        (inferer.decode, z_sem, network, not_finite), (inferer.decode, z_sem / 0, network, x_T),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="hold values that are not finite"):
            call(*arguments)
    with pytest.raises(ConfigError, match="x_T was given, but mode 'x_T' inverts each image's own"):
        inferer.reconstruct(images, network, x_T=x_T)
    with pytest.raises(ConfigError, match=r"x_T has the shape .3, 1, 8, 8.; with these images it must be .3, 1, 16"):
        inferer.reconstruct(images, network, mode="z_sem", x_T=x_T[..., :8, :8])
    with pytest.raises(ConfigError, match=r"in training mode.*call network.eval\(\)"):
        inferer.encode(images, network.train())


@pytest.mark.parametrize("z_grid", [1, 2])
def test_what_depends_on_z_sem_alone_is_computed_once_and_gives_what_computing_it_at_each_step_gives(inferer, z_grid):
    network = small_autoencoder(z_grid=z_grid)
    calls = []
    names = [n for n, _ in network.unet.named_modules() if n.endswith("z_projection") or n == "z_map.linear"]
    for name in names:
        network.unet.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    few = inferer.replace(steps=3)
    z_sem = torch.randn(3, 4)
    x_T = torch.randn(3, 1, 16, 16)
    decoded = few.decode(z_sem, network, x_T)
    assert sorted(calls) == sorted(names)
    other = torch.nn.Sequential(network).eval()  # any other network is called with z_sem at each step
    other.spatial_dims, other.forward = 2, network.forward
    assert torch.equal(few.decode(z_sem, other, x_T), decoded)


def test_exact_encoding_gives_the_same_z_sem_to_the_bit_in_every_batch(inferer):
    torch.manual_seed(0)
    network = preset("tiny").eval()
    images = torch.rand(20, 1, 32, 32) * 2 - 1
    z_sem = encode_exactly(images, network, inferer)
    assert len(z_sem) == 20
    torch.testing.assert_close(z_sem, inferer.encode(images, network), atol=1e-5, rtol=0)
    for part in (slice(0, 1), slice(3, 10), slice(19, 20)):
        assert torch.equal(encode_exactly(images[part], network, inferer), z_sem[part])
    # large images are encoded one by one
    assert [images_at_once(size) for size in ((64, 64), (128, 128), (64, 64, 32))] == [16, 8, 1]


def test_the_exact_decoder_is_exact_although_there_is_a_fast_one(inferer, network, images):
    other = small_autoencoder(base_channels=8)
    with_fast = inferer.replace(steps=3, fast_decoder=FastDecoder(other.unet, (999, 500, -1)))
    z_sem, x_T = inferer.encode(images, network), torch.randn_like(images)
    expected = inferer.replace(steps=3).decode(z_sem, network, x_T)
    assert torch.equal(with_fast.decode(z_sem, network, x_T), expected)
