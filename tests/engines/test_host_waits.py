"""Nothing waits for the device inside a training step, a decoding or an inversion.

The networks and images are on torch's device ``meta``, whose tensors have no values: any read by the host, be it
``item()``, ``bool()``, an index by values or a copy to the CPU, raises an error. On a GPU the same read would wait.
So would a copy from the CPU to the GPU that is blocking; these are counted.
"""

import contextlib

import pytest
import torch
from ignite.engine import Events
from torch.utils._python_dispatch import TorchDispatchMode

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.engines import AutoencoderPrepareBatch, DiffusionTrainer
from monai_diffae.engines.step_figures import HostCopy
from monai_diffae.handlers import EMA, RunningStatistics
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.networks import build_autoencoder

TINY = {"base_channels": 8, "channel_mult": (1, 2), "z_channels": 4, "time_embed_channels": 8}
SCHEDULES = {
    "paper": {},
    "clipped": {"clip_range": (-1, 1)},
    "rectified flow": {"schedule": "rectified_flow", "prediction": "v"},
}


class BlockingCopies(TorchDispatchMode):
    """Counts the copies from the CPU to the device, and those that wait for the device."""

    def __init__(self):
        super().__init__()
        self.copies = self.blocking = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            self._count(args[0], torch.device(kwargs.get("device") or args[0].device), kwargs.get("non_blocking"))
        elif func is torch.ops.aten.copy_.default:
            self._count(args[1], args[0].device, args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        return func(*args, **kwargs)

    def _count(self, source, target, non_blocking):
        if source.device.type == "cpu" and target.type == "meta":
            self.copies += 1
            self.blocking += not non_blocking


def test_copies_to_the_device_are_counted():
    values = torch.ones(2)
    with BlockingCopies() as counted:
        values.to("meta", non_blocking=True)
        torch.empty(2, device="meta").copy_(values, non_blocking=True)
    assert (counted.copies, counted.blocking) == (2, 0)
    with BlockingCopies() as counted:
        values.to("meta")
        torch.empty(2, device="meta").copy_(values)
    assert (counted.copies, counted.blocking) == (2, 2)


def on_meta(spatial_dims):
    return build_autoencoder(spatial_dims, **TINY).to("meta"), torch.empty(2, 1, *[16] * spatial_dims, device="meta")


def test_a_read_of_a_value_on_the_device_is_an_error():
    value = torch.ones((), device="meta")
    for read in (lambda: value.item(), lambda: bool(value > 0), lambda: value.cpu(), lambda: value.tolist()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


@pytest.mark.parametrize(
    ("spatial_dims", "schedule", "inversion", "solver"),
    [
        (2, "rectified flow", "implicit", "adams"),
        (3, "paper", "implicit", "adams"),
        (2, "clipped", "ddim", "ddim"),
        (2, "paper", "implicit", "unipc"),
        (2, "clipped", "implicit", "heun"),
        (2, "rectified flow", "implicit", "dpmpp_2m"),
    ],
)
def test_no_wait_in_encoding_inversion_and_decoding(spatial_dims, schedule, inversion, solver, monkeypatch):
    # what a caller passes is checked once, before the loops
    monkeypatch.setattr("monai_diffae.inferers.autoencoding._check_inputs", lambda *_: None)
    network, images = on_meta(spatial_dims)
    levels = DiffusionSchedule(**SCHEDULES[schedule]).to("meta")
    inferer = DiffusionAutoencoderInferer(levels, solver=solver, inversion=inversion, steps=4)
    with BlockingCopies() as counted:
        z_sem = inferer.encode(images, network.eval())
        decoded = inferer.decode(z_sem, inferer.invert(images, network, z_sem), network)
    assert counted.copies == 0
    assert (decoded.device.type, decoded.shape) == ("meta", images.shape)


def trainer_on_meta(spatial_dims, loss_weighting, encoder_key="image", **settings):
    network, images = on_meta(spatial_dims)
    schedule = DiffusionSchedule(loss_weighting=loss_weighting)
    optimizer = torch.optim.AdamW(network.parameters(), fused=False, foreach=True)  # there is no fused kernel for meta
    ema = EMA(network)
    trainer = DiffusionTrainer(
        schedule=schedule,
        network=network,
        train_data_loader=[{key: torch.zeros(images.shape) for key in dict.fromkeys(("image", encoder_key))}] * 8,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(reduction="none"),
        inferer=DiffusionAutoencoderInferer(schedule),
        prepare_batch=AutoencoderPrepareBatch(schedule, encoder_key=encoder_key),
        device=torch.device("meta"),
        max_epochs=1,
        precision="fp32",
        train_handlers=[ema, RunningStatistics(images_per_step=2, optimizer=optimizer, every=100)],
        **settings,
    )
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
        (2, "none", {}),
        (3, "none", {"channels_last": False}),
        (2, "min_snr", {"accumulation_steps": 2}),
        (3, "none", {"encoder_key": "view", "agreement_weight": 0.02}),
    ],
)
def test_no_wait_in_a_training_step(spatial_dims, settings, loss_weighting, reads):
    trainer, ema = trainer_on_meta(spatial_dims, loss_weighting, **settings)
    steps = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: steps.append(reads()))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), trainer.terminate)  # before the report of the epoch
    with BlockingCopies() as counted:
        trainer.run()
    assert len(steps) == 4
    # in each step images, the encoder's if they are others, and timesteps; once, the sum of the losses
    assert (counted.copies, counted.blocking) == (4 * (3 if "encoder_key" in settings else 2) + 1, 0)
    assert ema.num_updates == 4 // settings.get("accumulation_steps", 1)
    assert steps[0] == 0  # a step reads the figures of the one before it
    assert steps[1] > 0
