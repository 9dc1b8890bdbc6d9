import pytest
import torch
from monai.networks.nets import AutoencoderKL
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference

from monai_diffae.engines import FirstStageEvaluator, FirstStageTrainer, StepDraws
from monai_diffae.engines.first_stage import kl_divergence
from monai_diffae.inferers import FirstStageInferer
from monai_diffae.networks import FirstStage


def make(**kwargs):
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        2, channels=(4, 8), attention_levels=(False, False), num_res_blocks=1, norm_num_groups=4,
        with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    network = FirstStage(autoencoder)
    trainer = FirstStageTrainer(
        network=network, device=torch.device("cpu"), max_epochs=1, train_data_loader=[batch()], precision="fp32",
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=torch.nn.L1Loss(reduction="none"), **kwargs,
    )  # fmt: skip
    return trainer, network


def batch():
    return {"image": torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), "id": ["a", "b", "c"]}


def test_kl_divergence_is_the_mean_over_latent_values_whatever_their_number():
    mean, sigma = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4) + 0.1
    expected = reference(Normal(mean, sigma), Normal(0, 1)).flatten(1).mean(dim=1)
    torch.testing.assert_close(kl_divergence(mean, sigma), expected)
    twice = kl_divergence(mean.repeat(1, 1, 2, 1), sigma.repeat(1, 1, 2, 1))
    torch.testing.assert_close(twice, expected)


@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_loss_is_the_absolute_error_and_the_weighted_divergence(kl_weight):
    trainer, network = make(kl_weight=kl_weight)
    torch.manual_seed(2)
    losses = trainer.image_losses(batch())
    torch.manual_seed(2)
    images = batch()["image"]
    reconstruction, mean, sigma = network(images, lambda shape, device: torch.randn(len(images), *shape))
    expected = (reconstruction - images).abs().flatten(1).mean(dim=1) + kl_weight * kl_divergence(mean, sigma)
    torch.testing.assert_close(losses, expected)


@pytest.mark.goal(id="R18")
def test_two_processes_sample_together_what_one_samples():
    """Goal R18."""
    trainer, _ = make(kl_weight=0.5)
    whole = batch()
    halves = [{"image": whole["image"][:2], "draws": StepDraws(0, 5, 0, 2, 3)}]
    halves += [{"image": whole["image"][2:], "draws": StepDraws(0, 5, 2, 1, 3)}]
    alone = trainer.image_losses({**whole, "draws": StepDraws(0, 5, 0, 3, 3)})
    torch.testing.assert_close(torch.cat([trainer.image_losses(half) for half in halves]), alone)
    other_step = trainer.image_losses({**whole, "draws": StepDraws(0, 6, 0, 3, 3)})
    assert not torch.equal(other_step, alone)


def test_every_part_of_the_network_is_trained():
    trainer, network = make(kl_weight=0.5)
    trainer.image_losses(batch()).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_validation_draws_nothing():
    _, network = make(kl_weight=0.5)
    evaluator = FirstStageEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[batch()],
        network=network,
        inferer=FirstStageInferer(),
        precision="fp32",
    )
    outputs = []
    for _ in range(2):
        evaluator.run()
        outputs.append(evaluator.state.output)
    assert outputs[0].keys() == {"loss", "kl"}
    for one, other in zip(outputs[0].values(), outputs[1].values(), strict=True):
        assert one.shape == (3,)
        assert torch.equal(one, other)
