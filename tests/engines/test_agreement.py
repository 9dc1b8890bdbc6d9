"""Agreement of two views: the loss, and trainings with it."""

from itertools import islice

import numpy as np
import pytest
import torch
from ignite.engine import Events

from monai_diffae.engines.losses import agreement_loss, encoding_both
from monai_diffae.errors import ConfigError
from monai_diffae.networks import build_autoencoder

TINY = {"base_channels": 4, "channel_mult": (1, 2), "num_res_blocks": 1, "z_channels": 6, "time_embed_channels": 8}


def expected_loss(first, second):
    """VICReg by numpy, number by number."""
    loss = 25 * np.mean((first - second) ** 2)
    for z_sem in (first, second):
        for column in z_sem.T:
            loss += 25 * max(0, 1 - np.sqrt(np.var(column, ddof=1) + 1e-4)) / z_sem.shape[1] / 2
        covariance = np.cov(z_sem.T)
        for i, row in enumerate(covariance):
            loss += sum(value**2 for j, value in enumerate(row) if i != j) / z_sem.shape[1]
    return loss


def test_the_loss_is_that_of_another_implementation():
    count, scale = 40, 3.0
    generator = np.random.default_rng(count)
    first, second = generator.normal(size=(2, count, 6)) * scale * np.linspace(0.2, 2, 6)
    loss = agreement_loss(torch.tensor(first), torch.tensor(second))
    assert float(loss) == pytest.approx(expected_loss(first, second), rel=1e-5)
    assert loss.dtype == torch.float32


def test_codes_that_are_all_equal_have_a_finite_gradient():
    z_sem = torch.ones(4, 3, requires_grad=True)
    agreement_loss(z_sem, z_sem).backward()
    assert torch.isfinite(z_sem.grad).all()


def test_the_decoder_gets_the_first_view_and_both_are_encoded_once():
    network = build_autoencoder(3, z_grid=2, **TINY)
    torch.nn.init.normal_(network.unet.head[-1].weight)
    shape = (2, 1, 8, 8, 8)
    x_t, seen, drawn = (torch.randn(shape) for _ in range(3))
    passes = []
    network.encoder.register_forward_pre_hook(lambda *_: passes.append(1))
    with encoding_both(network) as z_sem:
        output = network(x_t, torch.tensor([5, 500]), torch.cat([seen, drawn]))
    assert len(passes) == 1
    torch.testing.assert_close(output, network(x_t, torch.tensor([5, 500]), seen))
    torch.testing.assert_close(z_sem[0], torch.cat([network.encode(seen), network.encode(drawn)]))
    assert network.encode(seen).shape == (2, 6)


@pytest.fixture(scope="module")
def slices(image_data):
    """Smooth images, and a view of each that is darker, noisy and shifted."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(8, 1, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=16, mode="bicubic").clamp(-1, 1)
    noise = torch.randn(images.shape, generator=generator)
    return image_data(images=images, views=(images.roll(2, dims=-1) * 0.5 + 0.2 * noise).clamp(-1, 1))


@pytest.fixture(scope="module")
def trained(slices, make_trainer):
    def train(**settings):
        """A trainer after its steps of 4 images, and their losses."""
        losses, settings = [], {"encoder_key": "view", "lr": 1e-3, **settings}
        trainer = make_trainer(data=slices, **settings)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output[0]["loss"])))
        trainer.run()
        return trainer, losses

    return train


def test_a_weight_of_0_is_the_training_without_it_to_the_bit(trained):
    encoded = []

    def weights(**settings):
        trainer, losses = trained(**settings)
        return [*trainer.network.state_dict().values(), torch.tensor(losses)]

    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: encoded.append(len(args[0])) if type(module).__name__ == "SemanticEncoder" else None
    )
    without, with_0 = weights(), weights(agreement_weight=0.0)
    assert encoded == [4] * 4
    with_more = weights(agreement_weight=0.02)
    hook.remove()
    assert encoded[4:] == [8] * 2
    assert all(torch.equal(a, b) for a, b in zip(without, with_0, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(without, with_more, strict=True))


def test_the_agreement_is_added_to_the_loss_of_diffusion(slices, trained):
    before, plain = trained(lr=0.0)
    _, losses = trained(lr=0.0, agreement_weight=0.5)
    batches = [[i for _, i in batch] for batch in islice(before.data_loader.batch_sampler, len(plain))]
    with torch.no_grad():
        z_sem = before.network.encode(slices.images), before.network.encode(slices.views)
    added = [0.5 * float(agreement_loss(z_sem[1][batch], z_sem[0][batch])) for batch in batches]
    assert [a - b for a, b in zip(losses, plain, strict=True)] == pytest.approx(added, rel=1e-3)
    for settings in ({"encoder_key": "image"}, {"batch_size": 1}, {"world_size": 8}):  # 8 images are one per process
        with pytest.raises(ConfigError, match="^agreement_weight: needs another view"):
            trained(agreement_weight=0.5, **settings)
