import pytest
import torch
from tiny_bundles import tiny_kl
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference

from monai_diffae.data import CachedCases
from monai_diffae.engines import FirstStageEvaluator, FirstStageTrainer, LatentCases, StepDraws
from monai_diffae.engines.first_stage import kl_divergence
from monai_diffae.inferers import FirstStageInferer
from monai_diffae.networks import FirstStage


def make(**kwargs):
    network = FirstStage(tiny_kl(2))
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


def test_loss_is_the_absolute_error_and_the_weighted_divergence():
    kl_weight, draws = 0.5, StepDraws(0, 5, 0, 3, 3)
    trainer, network = make(kl_weight=kl_weight)
    losses = trainer.image_losses({**batch(), "draws": draws})
    images = batch()["image"]
    reconstruction, mean, sigma = network(images, draws.noise)
    expected = (reconstruction - images).abs().flatten(1).mean(dim=1) + kl_weight * kl_divergence(mean, sigma)
    torch.testing.assert_close(losses, expected)


@pytest.mark.goal(id="R18")
def test_two_processes_sample_together_what_one_samples():
    trainer, _ = make(kl_weight=0.5)
    whole = batch()
    halves = [{"image": whole["image"][:2], "draws": StepDraws(0, 5, 0, 2, 3)}]
    halves += [{"image": whole["image"][2:], "draws": StepDraws(0, 5, 2, 1, 3)}]
    alone = trainer.image_losses({**whole, "draws": StepDraws(0, 5, 0, 3, 3)})
    torch.testing.assert_close(torch.cat([trainer.image_losses(half) for half in halves]), alone)
    other_step = trainer.image_losses({**whole, "draws": StepDraws(0, 6, 0, 3, 3)})
    assert not torch.equal(other_step, alone)


def test_validation_draws_nothing():
    _, network = make(kl_weight=0.5)
    evaluator = FirstStageEvaluator(
        device=torch.device("cpu"), val_data_loader=[batch()], network=network, inferer=FirstStageInferer(),
        precision="fp32",
    )  # fmt: skip
    outputs = []
    for _ in range(2):
        evaluator.run()
        outputs.append(evaluator.state.output)
    assert outputs[0].keys() == {"loss", "kl"}
    for one, other in zip(outputs[0].values(), outputs[1].values(), strict=True):
        assert one.shape == (3,)
        assert torch.equal(one, other)


SHAPE = (1, 8, 8, 8)


def read(item):
    generator = torch.Generator().manual_seed(item["image"])
    return {"image": torch.rand(SHAPE, generator=generator) * 2 - 1}


class Counted(FirstStage):
    """A first stage that counts the images that it encodes."""

    encoded = 0

    def encode(self, images):
        self.encoded += len(images)
        return super().encode(images)


@pytest.fixture
def first_stage():
    stage = Counted(tiny_kl()).eval()
    stage.measure([read({"image": 0})["image"]])
    return stage


def dataset(first_stage, folder, numbers=(1, 2, 3)):
    items = [{"image": number, "id": f"case-{number}"} for number in numbers]
    settings = {"cache_dir": folder / "cache", "made_from": {}, "output_dir": folder}
    return LatentCases(data=items, transform=read, first_stage=first_stage, **settings)


def test_items_hold_the_latents_and_images_the_images(first_stage, tmp_path):
    cases = dataset(first_stage, tmp_path)
    plain = CachedCases([{"image": n, "id": f"case-{n}"} for n in (1, 2, 3)], read)
    for index in range(3):
        image = plain[index]["image"]
        assert torch.equal(cases.images()[index]["image"], image)
        assert torch.equal(cases[index]["image"], first_stage.encode(image[None])[0])
        assert cases[index]["id"] == cases.images()[index]["id"] == plain[index]["id"]
    assert cases.contents == plain.contents


def test_each_image_is_encoded_once_until_image_or_weights_change(first_stage, tmp_path):
    expected = dataset(first_stage, tmp_path)[2]["image"]
    assert first_stage.encoded == 3
    again = dataset(first_stage, tmp_path, (1, 2, 3, 4))  # the next start of the training
    assert torch.equal(again[2]["image"], expected)
    assert first_stage.encoded == 4
    first_stage.latent_std.mul_(2)
    assert torch.equal(dataset(first_stage, tmp_path)[2]["image"], expected / 2)
    assert first_stage.encoded == 7
