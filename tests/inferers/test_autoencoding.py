from functools import partial

import pytest
import torch
from monai.data import MetaTensor

from monai_diffae.diffusion import SOLVERS, DiffusionSchedule
from monai_diffae.diffusion.solvers import unipc
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.networks import build_autoencoder


@pytest.fixture
def inferer():
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v")
    return DiffusionAutoencoderInferer(schedule, steps=50, clip=False)


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
    error = (inferer.decode(z_sem, x_T, network) - images).square().mean()
    other = (inferer.decode(z_sem, torch.randn_like(x_T), network) - images).square().mean()
    assert error < 1e-3
    assert other > 100 * error
    torch.testing.assert_close(inferer.invert(images, network), x_T)  # z_sem is computed if it is not given


def test_reconstruct_encodes_inverts_and_decodes(inferer, network, images):
    z_sem = inferer.encode(images, network)
    expected = inferer.decode(z_sem, inferer.invert(images, network, z_sem), network)
    torch.testing.assert_close(inferer.reconstruct(images, network), expected)
    noise = torch.randn_like(images)
    expected = inferer.decode(z_sem, noise, network)
    torch.testing.assert_close(inferer.reconstruct(images, network, mode="z_sem", x_T=noise), expected)


@pytest.mark.goal(id="R24")
def test_more_steps_reconstruct_better_and_as_well_as_before(inferer, network, images, record_property):
    """The bounds are three times what was measured; a worse solver or inversion exceeds them."""
    bounds = {5: 5e-4, 10: 3.4e-5, 20: 5.4e-6, 40: 2e-6}
    errors = {}
    for steps in bounds:
        few = DiffusionAutoencoderInferer(inferer.schedule, steps=steps, invert_tolerance=None, clip=False)
        errors[steps] = float((few.reconstruct(images, network) - images).square().mean())
    assert sorted(errors.values(), reverse=True) == list(errors.values())
    assert all(errors[steps] < bound for steps, bound in bounds.items()), errors
    record_property("figure", ", ".join(f"MSE {error:.1e} with {steps} steps" for steps, error in errors.items()))


@pytest.mark.goal(id="R24")
def test_a_round_trip_refines_only_the_images_that_are_not_reproduced(inferer, network, images, evaluations):
    z_sem = inferer.encode(images, network)

    def round_trip(tolerance):
        evaluations.clear()
        few = DiffusionAutoencoderInferer(inferer.schedule, steps=5, invert_tolerance=tolerance)
        x_T, decoded = few.round_trip(images, network, z_sem)
        num_evaluations = len(evaluations)
        torch.testing.assert_close(decoded, few.decode(z_sem, x_T, network), atol=1e-5, rtol=1e-5)
        return x_T, (decoded - images).square().mean(dim=(1, 2, 3)), num_evaluations

    plain, errors, num_plain = round_trip(None)
    assert num_plain == 10
    between = float(errors.sort().values[:2].mean())  # one image is reproduced, two are not
    refined, refined_errors, num_refined = round_trip(between)
    assert num_refined > num_plain
    is_reproduced = errors <= between
    assert is_reproduced.sum() == 1
    assert torch.equal(refined[is_reproduced], plain[is_reproduced])
    assert (refined_errors[~is_reproduced] <= between).all()
    exact_errors = round_trip(1e-9)[1]
    assert (exact_errors < errors / 10).all()


@pytest.mark.goal(id="R24")
def test_a_warning_is_logged_if_even_a_refinement_does_not_reproduce_an_image(inferer, images, caplog):
    class Rough(torch.nn.Module):  # a network that no solver can follow
        def encode(self, x):
            return torch.zeros(len(x), 4)

        def forward(self, x, t, z):
            return 20 * torch.sin(50 * x)

    rough = DiffusionAutoencoderInferer(inferer.schedule, steps=3)
    rough.round_trip(images, Rough().eval())
    assert "inversion: 3 of 3 images are not reproduced within a mean squared error of 0.001" in caplog.text


def test_the_callback_is_called_for_every_step_of_inversion_and_decoding(inferer, network, images):
    calls = []
    DiffusionAutoencoderInferer(inferer.schedule, steps=4).reconstruct(
        images, network, callback=lambda *step: calls.append(step[:2])
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)] * 2


@pytest.fixture
def evaluations(network, monkeypatch):
    """The batch size of each evaluation of the UNet."""
    sizes = []
    denoise = network.unet.denoise
    monkeypatch.setattr(network.unet, "denoise", lambda x, *rest: (sizes.append(len(x)), denoise(x, *rest))[1])
    return sizes


@pytest.mark.parametrize(
    ("settings", "inversion", "decoding"),
    [
        ({}, 20, 20),
        ({"steps": 10, "invert_steps": 30}, 30, 10),
        ({"steps": 10, "invert_steps": 5}, 5, 10),
        ({"solver": "heun", "steps": 9}, 9, 9),
        ({"solver": "ddim", "inversion": "ddim", "steps": 10}, 10, 10),
        ({"solver": "ddim", "inversion": "ddim", "spacing": "leading", "steps": 10, "invert_steps": 25}, 25, 10),
    ],
)
def test_steps_are_network_evaluations(inferer, network, images, evaluations, settings, inversion, decoding):
    inferer = DiffusionAutoencoderInferer(inferer.schedule, **settings)
    x_T = inferer.invert(images, network)
    assert len(evaluations) == inversion
    inferer.decode(inferer.encode(images, network), x_T, network)
    assert len(evaluations) == inversion + decoding


# not eps: where there is hardly any signal, x0 cannot be computed from an untrained network's eps
@pytest.mark.parametrize(("name", "prediction"), [("linear_beta", "v"), ("rectified_flow", "v")])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_default_inversion_undoes_every_solver_better_than_the_papers(name, prediction, solver, network, images):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)

    def error(**settings):
        inferer = DiffusionAutoencoderInferer(schedule, solver, **settings)
        return float((inferer.reconstruct(images, network) - images).square().mean())

    assert error(steps=21) < error(steps=21, inversion="ddim") / 3


def test_a_solver_can_be_any_function_with_the_signature_of_a_solver(inferer, network, images):
    own = DiffusionAutoencoderInferer(inferer.schedule, partial(unipc, order=2), steps=5)
    assert own.reconstruct(images, network).isfinite().all()


def test_volumes_are_processed_slice_by_slice_by_a_2d_network(inferer, network, images, evaluations):
    inferer = DiffusionAutoencoderInferer(inferer.schedule, steps=3, batch_size=4, invert_tolerance=None)
    volumes = torch.rand(2, 1, 16, 16, 5) * 2 - 1
    z_sem = inferer.encode(volumes, network)
    x_T = inferer.invert(volumes, network, z_sem)
    decoded = inferer.decode(z_sem, x_T, network)
    assert z_sem.shape == (2, 5, 4)
    assert x_T.shape == decoded.shape == volumes.shape
    assert max(evaluations) == 4
    single = volumes[1:, ..., 2]
    torch.testing.assert_close(z_sem[1:, 2], inferer.encode(single, network))
    torch.testing.assert_close(x_T[1:, ..., 2], inferer.invert(single, network), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decoded[1:, ..., 2], inferer.reconstruct(single, network), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inferer.reconstruct(volumes, network), decoded)


def test_a_3d_network_takes_volumes_whole():
    torch.manual_seed(0)
    network = build_autoencoder(3, base_channels=4, channel_mult=(1, 2), z_channels=4, time_embed_channels=8).eval()
    volumes = torch.rand(2, 1, 8, 12, 8) * 2 - 1
    inferer = DiffusionAutoencoderInferer(DiffusionSchedule(), steps=4)
    assert inferer.encode(volumes, network).shape == (2, 4)
    assert inferer.reconstruct(volumes, network).shape == volumes.shape


def test_in_autocast_the_network_is_fast_and_the_solver_exact(inferer, network, images):
    inferer = DiffusionAutoencoderInferer(inferer.schedule, steps=10)
    exact = inferer.reconstruct(images, network)
    with torch.autocast("cpu", torch.bfloat16):
        z_sem = inferer.encode(images, network)
        x_T = inferer.invert(images, network, z_sem)
        decoded = inferer.decode(z_sem, x_T, network)
    assert z_sem.dtype == x_T.dtype == decoded.dtype == torch.float32
    assert not torch.equal(decoded, exact)  # the network did compute in bfloat16
    torch.testing.assert_close(decoded, exact, atol=0.1, rtol=0)


def test_a_network_in_half_precision_is_given_half_precision(inferer, network, images):
    inferer = DiffusionAutoencoderInferer(inferer.schedule, steps=10)
    decoded = inferer.reconstruct(images.bfloat16(), network.bfloat16())
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, images, atol=0.2, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_is_the_same(inferer, network, images):
    inferer = DiffusionAutoencoderInferer(inferer.schedule, steps=10)
    expected = inferer.reconstruct(images, network)
    on_gpu = inferer.reconstruct(images.cuda(), network.cuda())
    torch.testing.assert_close(on_gpu.cpu(), expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "dpm"}, "solver is 'dpm'; choose one of: adams"),
        ({"inversion": "exact"}, "inversion is 'exact'; choose one of: implicit, ddim"),
        ({"spacing": "log"}, "spacing is 'log'; choose one of: logsnr"),
        ({"steps": 0}, "steps is 0"),
        ({"invert_steps": 0}, "invert_steps is 0"),
        ({"steps": 1001}, "steps is 1001; it must be between 1 and 1000"),
        ({"solver": "heun", "steps": 5000}, "steps is 5000; it must be between 1 and 1999"),
        ({"batch_size": 0}, "batch_size is 0"),
        (
            {"inversion": "ddim", "invert_steps": 1001},
            "invert_steps is 1001; with inversion 'ddim' it must be at most 1000",
        ),
        ({"steps": "abc"}, "steps is 'abc'; it must be a whole number"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        ({"solver": []}, "solver is \\[\\]; choose one of: adams"),
        ({"spacing": ""}, "spacing is ''; choose one of: logsnr"),
        ({"spacing": {}}, "spacing is {}; choose one of: logsnr"),
        ({"clip": "maybe"}, "clip is 'maybe'; it must be true or false"),
    ],
)
def test_invalid_settings_are_refused_at_construction(inferer, settings, message):
    with pytest.raises(ConfigError, match=message):
        DiffusionAutoencoderInferer(inferer.schedule, **settings)


def test_a_schedule_must_be_a_diffusion_schedule():
    with pytest.raises(ConfigError, match="schedule is None; it must be a DiffusionSchedule"):
        DiffusionAutoencoderInferer(None)


def test_inputs_that_would_give_wrong_results_silently_are_refused(inferer, network, images):
    z_sem, x_T = inferer.encode(images, network), torch.zeros_like(images)
    not_finite = torch.full_like(images, torch.nan)
    for call in (
        lambda: inferer.encode(not_finite, network),
        lambda: inferer.invert(not_finite, network, z_sem),
        lambda: inferer.decode(z_sem, not_finite, network),
        lambda: inferer.decode(z_sem / 0, x_T, network),
    ):
        with pytest.raises(ConfigError, match="hold values that are not finite"):
            call()
    with pytest.raises(ConfigError, match="x_T was given, but mode 'x_T' inverts each image's own"):
        inferer.reconstruct(images, network, x_T=x_T)
    with pytest.raises(
        ConfigError, match="x_T has the shape .3, 1, 8, 8.; with these images it must be .3, 1, 16, 16."
    ):
        inferer.reconstruct(images, network, mode="z_sem", x_T=x_T[..., :8, :8])
    halving = DiffusionAutoencoderInferer(inferer.schedule, lambda denoise, schedule, x, levels, **_: x[..., :8])
    with pytest.raises(ConfigError, match="it must keep the shape"):
        halving.decode(z_sem, x_T, network)
    with pytest.raises(ConfigError, match=r"in training mode.*call network.eval\(\)"):
        inferer.encode(images, network.train())


def test_an_unknown_mode_is_refused(inferer, network, images):
    with pytest.raises(ConfigError, match="mode: 'z' is not one of x_T, z_sem"):
        inferer.reconstruct(images, network, mode="z")


def test_codes_carry_no_gradient(inferer, network, images):
    z_sem = inferer.encode(images, network)
    assert not z_sem.requires_grad
    assert not inferer.invert(images, network, z_sem).requires_grad


@pytest.mark.parametrize("solver", ["adams", "heun"])
def test_the_evaluations_of_a_round_trip_can_be_bounded(inferer, network, images, evaluations, caplog, solver):
    few = DiffusionAutoencoderInferer(inferer.schedule, solver, steps=5, invert_tolerance=1e-12)
    z_sem = few.encode(images, network)
    plain = few.replace(invert_tolerance=None).round_trip(images, network, z_sem)
    plain_error = (plain[1] - images).square().mean(dim=(1, 2, 3))
    evaluations.clear()
    for bound in (0, 7, 25, 60):
        caplog.clear()
        evaluations.clear()
        x_T, decoded = few.round_trip(images, network, z_sem, max_evaluations=bound)
        assert len(evaluations) <= few.invert_steps + few.steps + bound * len(images)
        assert "3 of 3 images are not reproduced" in caplog.text
        assert ((decoded - images).square().mean(dim=(1, 2, 3)) <= plain_error).all()  # the better one is kept
        torch.testing.assert_close(few.decode(z_sem, x_T, network), decoded, atol=1e-5, rtol=1e-5)
        if bound < 20:
            assert torch.equal(x_T, plain[0])
    assert not torch.equal(x_T, plain[0])
    unbounded = few.round_trip(images[:1], network, z_sem[:1])
    assert torch.equal(few.round_trip(images[:1], network, z_sem[:1], max_evaluations=10_000)[0], unbounded[0])
    for wrong in (-1, 1.5, True):
        with pytest.raises(ConfigError, match=f"^max_evaluations is {wrong}; it must be a whole number, at least 0"):
            few.round_trip(images, network, z_sem, max_evaluations=wrong)


def test_an_inferer_can_be_replaced_by_one_with_other_arguments(inferer, network, images):
    other = inferer.replace(steps=3, solver="ddim")
    assert (other.steps, other.invert_steps, other.solver.__name__) == (3, 3, "ddim")
    assert other.schedule is inferer.schedule
    expected = DiffusionAutoencoderInferer(inferer.schedule, steps=3, solver="ddim").reconstruct(images, network)
    assert torch.equal(other.reconstruct(images, network), expected)
    assert inferer.replace().steps == inferer.steps
    with pytest.raises(ConfigError, match="steps is 0"):
        inferer.replace(steps=0)


@pytest.mark.parametrize("z_grid", [1, 2])
def test_what_depends_on_z_sem_alone_is_computed_once_per_decoding_and_inversion(inferer, images, z_grid):
    sizes = {"base_channels": 8, "channel_mult": (1, 2), "z_channels": 4, "time_embed_channels": 8}
    network = build_autoencoder(2, **sizes, z_grid=z_grid).eval()
    torch.nn.init.normal_(network.unet.head[-1].weight, std=0.1)
    calls = []
    names = [
        name for name, _ in network.unet.named_modules() if name.endswith("z_projection") or name == "z_map.linear"
    ]
    for name in names:
        network.unet.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    z_sem = torch.randn(3, 4)
    x_T = inferer.invert(images, network, z_sem)
    assert sorted(calls) == sorted(names)
    calls.clear()
    decoded = inferer.decode(z_sem, x_T, network)
    assert sorted(calls) == sorted(names)

    class Other(torch.nn.Module):  # any other network is called with z_sem at each step
        spatial_dims = 2

        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, t, z):
            return self.inner(x, t, z)

    assert torch.equal(inferer.decode(z_sem, x_T, Other().eval()), decoded)


@pytest.mark.parametrize(("small", "threads"), [(2**22, 1), (1, 2)])
def test_small_images_are_processed_by_one_thread_and_others_by_all(
    inferer, network, images, two_threads, monkeypatch, small, threads
):
    monkeypatch.setattr("monai_diffae.networks.threads._SMALL", small)
    numbers = set()
    network.register_forward_hook(lambda *_: numbers.add(torch.get_num_threads()))
    network.encoder.register_forward_hook(lambda *_: numbers.add(torch.get_num_threads()))
    network.unet.stem.register_forward_hook(lambda *_: numbers.add(torch.get_num_threads()))
    inferer.replace(steps=2, invert_tolerance=None).round_trip(images, network)
    assert numbers == {threads}
    assert torch.get_num_threads() == 2


def test_an_image_that_is_inverted_again_has_the_number_of_threads_of_one_image(
    inferer, network, images, two_threads, monkeypatch
):
    monkeypatch.setattr("monai_diffae.networks.threads._SMALL", 2 * 16 * 16 * 8**2 * 9)  # three images are not small
    numbers = set()
    network.unet.stem.register_forward_hook(lambda _, x, __: numbers.add((len(x[0]), torch.get_num_threads())))
    inferer.replace(steps=2, invert_tolerance=1e-12).round_trip(images, network, max_evaluations=10)
    assert numbers == {(3, 2), (1, 1)}


def test_a_small_image_is_the_same_to_the_bit_whatever_the_number_of_threads(inferer, two_threads):
    torch.manual_seed(0)
    network = build_autoencoder(2, base_channels=16, channel_mult=(1, 2, 4), z_channels=16).eval()
    torch.nn.init.normal_(network.unet.head[-1].weight, std=0.1)
    image, x_T = torch.rand(1, 1, 32, 32) * 2 - 1, torch.randn(1, 1, 32, 32)
    several = inferer.replace(steps=2).decode(inferer.encode(image, network), x_T, network)
    torch.set_num_threads(1)
    assert torch.equal(inferer.replace(steps=2).decode(inferer.encode(image, network), x_T, network), several)
