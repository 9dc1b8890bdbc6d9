"""Steps of a trainer: gradients, precisions, losses that are not finite, and what the device never waits for."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.engines import AutoencoderPrepareBatch, TrainingEvents
from monai_diffae.errors import ConfigError, DivergenceError
from monai_diffae.handlers import EMA
from monai_diffae.networks import FixedComponents, PooledVoxels


class FixedNoise(AutoencoderPrepareBatch):
    """Noise and timestep as functions of the image, so that batches can be cut differently."""

    def get_noise(self, images):
        return images.flip(-1)

    def get_timesteps(self, images):
        return (images.flatten(1).sum(1).abs() * 100).long() % 1000


def gradients(trainer):
    found = []

    def keep():
        found.append([p.grad.clone() for p in trainer.network.parameters() if p.grad is not None])

    trainer.add_event_handler(TrainingEvents.WEIGHTS_UPDATED, keep)
    trainer.run()
    return found


def test_two_accumulated_batches_of_4_give_the_gradients_of_a_batch_of_8(make_trainer):
    once = gradients(make_trainer(8, prepare=FixedNoise, max_grad_norm=None))
    twice = gradients(make_trainer(4, prepare=FixedNoise, max_grad_norm=None, accumulation_steps=2))
    assert len(once) == len(twice) == 1
    torch.testing.assert_close(once[0], twice[0], atol=1e-6, rtol=1e-4)


def test_events_of_a_user_join_those_of_the_trainer(make_trainer):
    trainer, seen = make_trainer(event_names=["measured"]), []
    trainer.add_event_handler("measured", lambda: seen.append("measured"))
    trainer.add_event_handler(TrainingEvents.WEIGHTS_UPDATED, lambda: trainer.fire_event("measured"))
    trainer.run()
    assert seen == ["measured"] * 2


def test_a_short_last_group_of_accumulated_batches_counts_like_a_full_one(make_trainer, image_data):
    # 5 batches in groups of 2: the last group is one batch, and its gradient is that batch's own
    data = image_data(20)
    single = gradients(make_trainer(4, prepare=FixedNoise, data=data, max_grad_norm=None))
    grouped = gradients(make_trainer(4, prepare=FixedNoise, data=data, max_grad_norm=None, accumulation_steps=2))
    assert (len(single), len(grouped)) == (5, 3)
    torch.testing.assert_close(grouped[2], single[4])


def test_a_step_that_fp16_skips_moves_no_average(make_trainer):
    trainer = make_trainer(lr=1e-3, precision="fp16")
    updates = []
    trainer.add_event_handler(TrainingEvents.WEIGHTS_UPDATED, lambda: updates.append(1))
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)  # overflows for sure
    before = [p.clone() for p in trainer.network.parameters()]
    trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    assert updates == []


def test_fp16_gradients_that_no_scale_makes_finite_end_the_training(make_trainer):
    trainer = make_trainer(1, precision="fp16", lr=1e-3)
    list(trainer.network.parameters())[-1].register_hook(lambda gradient: gradient * float("nan"))
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-10)
    before = [p.clone() for p in trainer.network.parameters()]
    # 2^-13 is 1.2e-4, 2^-14 is below the limit
    with pytest.raises(DivergenceError, match="fp16 gradients are not finite at step 4, at any scale; .*or precision"):
        trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))


@pytest.mark.goal(id="R8")
@pytest.mark.parametrize(("max_grad_norm", "accumulation_steps", "told_at"), [(None, 2, 4), (1.0, 1, 3)])
def test_a_gradient_not_finite_stops_before_the_next_update(make_trainer, max_grad_norm, accumulation_steps, told_at):
    trainer = make_trainer(1, lr=1e-3, max_grad_norm=max_grad_norm, accumulation_steps=accumulation_steps)
    updates = []
    trainer.add_event_handler(TrainingEvents.WEIGHTS_UPDATED, lambda: updates.append(trainer.state.iteration))

    def change(gradient):
        return gradient * float("inf") if trainer.state.iteration == 3 else gradient

    list(trainer.network.parameters())[-1].register_hook(change)
    with pytest.raises(DivergenceError, match=rf"step {told_at} \(norm (nan|inf)\).*lower learning_rate"):
        trainer.run()
    assert updates[-1] == told_at
    assert trainer.state.iteration == told_at + 1  # read together with the next loss


def test_clipping_limits_the_norm_of_all_gradients_together(make_trainer):
    def norm(found):
        return float(torch.cat([g.flatten() for g in found[0]]).norm())

    free = norm(gradients(make_trainer(8, max_grad_norm=None)))
    assert free > 0.01
    assert norm(gradients(make_trainer(8, max_grad_norm=0.01))) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("precision", "channels_last", "max_grad_norm"), [("bf16", True, 1.0), ("fp16", False, 1.0)])
def test_every_precision_trains_on_a_cpu(make_trainer, precision, channels_last, max_grad_norm):
    trainer = make_trainer(lr=1e-3, precision=precision, channels_last=channels_last, max_grad_norm=max_grad_norm)
    before = [p.clone() for p in trainer.network.parameters()]
    trainer.run()
    assert torch.isfinite(trainer.state.output[0]["loss"])
    assert trainer.grad_scaler.is_enabled() == (precision == "fp16")
    after = list(trainer.network.parameters())
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_min_snr_weighs_the_loss_of_each_image(make_trainer, image_data):
    images, losses = image_data().images[:4], {}
    for weighting in ("none", "min_snr"):
        schedule = DiffusionSchedule(prediction="v", loss_weighting=weighting)
        losses[weighting] = make_trainer(schedule=schedule, prepare=FixedNoise).image_losses({"image": images})
    weights = schedule.loss_weights(FixedNoise(schedule).get_timesteps(images))
    torch.testing.assert_close(losses["min_snr"], weights * losses["none"])


def test_the_first_numbers_of_z_sem_are_asked_for_fixed_components(make_trainer, make_network, image_data):
    images, components = image_data(20).images, FixedComponents([PooledVoxels([2, 2])], channels=3)
    components.fit([images])
    settings = {"prepare": FixedNoise, "network": make_network(), "predicted_weight": 0.5}
    asked, plain = (
        make_trainer(predicted=predicted, **settings).image_losses({"image": images})
        for predicted in (components, None)
    )
    distances = settings["network"].encode(images)[:, :3] - components(images)
    torch.testing.assert_close(asked - plain, 0.5 * distances.square().mean(dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.goal(id="R8")
def test_a_loss_that_is_not_finite_stops_and_names_the_cases(make_trainer, image_data):
    trainer = make_trainer(2, data=image_data(value=float("nan")), lr=1e-3)
    trainer.state.iteration = 999_999
    heard = [], []
    for errors in heard:
        trainer.add_event_handler(Events.EXCEPTION_RAISED, errors.append)
    with pytest.raises(DivergenceError, match=r"not finite at step \d+ \(cases .*case-2.*lower learning_rate"):
        trainer.run()
    assert [len(errors) for errors in heard] == [1, 1]  # every handler learns of it
    assert all(torch.isfinite(p).all() for p in trainer.network.parameters())


def test_no_step_waits_for_the_device(make_trainer, make_network, monkeypatch):
    """On torch's device ``meta`` tensors have no values: any read by the host, which on a GPU would wait, is an error.

    Only AsyncScalar reads numbers, those of an earlier step.
    """
    reads, steps = [], []
    scalar = SimpleNamespace(read=lambda: reads.append(0.0) or 0.0)
    monkeypatch.setattr("monai_diffae.engines.trainer.AsyncScalar", lambda _: scalar)
    monkeypatch.setattr("monai_diffae.engines.trainer.autocast", lambda *_: contextlib.nullcontext())  # none for meta
    network = make_network().to("meta")
    ema = EMA(network)
    trainer = make_trainer(
        network=network, device=torch.device("meta"), accumulation_steps=2, encoder_key="view",
        schedule=DiffusionSchedule(prediction="v", loss_weighting="min_snr"), train_handlers=[ema],
        train_data_loader=[{"image": torch.zeros(4, 1, 8, 8), "view": torch.zeros(4, 1, 8, 8)}] * 8,
    )  # fmt: skip
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: steps.append(len(reads)))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.terminate)  # before the report of the epoch
    trainer.run()
    assert len(steps) == 2
    assert steps[0] == 0 < steps[1]  # a step reads the figures of the one before it
    assert ema.num_updates == 1
    for wrong, message in ({"amp": True}, "amp: "), ({"loss_function": torch.nn.L1Loss()}, "loss_function: must not"):
        with pytest.raises(ConfigError, match=f"^{message}"):
            make_trainer(network=network, **wrong)
