"""Nothing waits for the device inside a training step, a decoding or an inversion.

On torch's device ``meta`` tensors have no values: any read by the host, which on a GPU would wait, is an error.
"""

import contextlib

import pytest
import torch
from ignite.engine import Events

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.engines import AutoencoderPrepareBatch, DiffusionTrainer
from monai_diffae.engines.step_figures import HostCopy
from monai_diffae.handlers import EMA, RunningStatistics
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.networks import build_autoencoder

TINY = {"base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4, "time_embed_channels": 8}


def on_meta(spatial_dims):
    return build_autoencoder(spatial_dims, **TINY).to("meta"), torch.empty(2, 1, *[16] * spatial_dims, device="meta")


@pytest.mark.parametrize(
    ("spatial_dims", "inversion", "solver"),
    [(3, "ddim", "ddim"), (2, "implicit", "adams"), (2, "implicit", "heun"), (2, "implicit", "unipc")],
)
def test_no_wait_in_encoding_inversion_and_decoding(spatial_dims, inversion, solver, monkeypatch):
    # what a caller passes is checked once, before the loops
    monkeypatch.setattr("monai_diffae.inferers.autoencoding._check_inputs", lambda *_: None)
    network, images = on_meta(spatial_dims)
    schedule = DiffusionSchedule(clip_range=(-1, 1)).to("meta")
    inferer = DiffusionAutoencoderInferer(schedule, solver=solver, inversion=inversion, steps=4)
    z_sem = inferer.encode(images, network.eval())
    decoded = inferer.decode(z_sem, inferer.invert(images, network, z_sem), network)
    assert (decoded.device.type, decoded.shape) == ("meta", images.shape)


def trainer_on_meta(spatial_dims, loss_weighting, encoder_key="image", **settings):
    network, images = on_meta(spatial_dims)
    schedule = DiffusionSchedule(loss_weighting=loss_weighting)
    optimizer = torch.optim.AdamW(network.parameters(), fused=False, foreach=True)  # there is no fused kernel for meta
    ema = EMA(network)
    trainer = DiffusionTrainer(
        schedule=schedule, network=network, device=torch.device("meta"), max_epochs=1, precision="fp32",
        train_data_loader=[{key: torch.zeros(images.shape) for key in dict.fromkeys(("image", encoder_key))}] * 8,
        optimizer=optimizer, loss_function=torch.nn.MSELoss(reduction="none"),
        inferer=DiffusionAutoencoderInferer(schedule),
        prepare_batch=AutoencoderPrepareBatch(schedule, encoder_key=encoder_key),
        train_handlers=[ema, RunningStatistics(images_per_step=2, optimizer=optimizer, every=100)],
        **settings,
    )  # fmt: skip
    return trainer, ema


@pytest.fixture
def reads(monkeypatch):
    """Counts the numbers that are read through :class:`HostCopy`, which waits for an earlier step only."""
    count = [0]

    def read(_):
        count[0] += 1
        return 0.0

    monkeypatch.setattr(HostCopy, "__init__", lambda *_: None)
    monkeypatch.setattr(HostCopy, "read", read)
    monkeypatch.setattr("monai_diffae.engines.trainer.autocast", lambda *_: contextlib.nullcontext())  # none for meta
    return lambda: count[0]


@pytest.mark.parametrize(
    ("spatial_dims", "loss_weighting", "settings"),
    [
        (2, "min_snr", {"accumulation_steps": 2}),
        (3, "none", {"encoder_key": "view", "agreement_weight": 0.02, "channels_last": False}),
    ],
)
def test_no_wait_in_a_training_step(spatial_dims, settings, loss_weighting, reads):
    trainer, ema = trainer_on_meta(spatial_dims, loss_weighting, **settings)
    steps = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: steps.append(reads()))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), trainer.terminate)  # before the report of the epoch
    trainer.run()
    assert len(steps) == 4
    assert ema.num_updates == 4 // settings.get("accumulation_steps", 1)
    assert steps[0] == 0  # a step reads the figures of the one before it
    assert steps[1] > 0
