"""A small trainer of a diffusion autoencoder, and images for it."""

import pytest
import torch

from monai_diffae import DiffusionAutoencoderInferer, DiffusionSchedule
from monai_diffae.engines import AutoencoderPrepareBatch, DiffusionTrainer, StepSeeding, training_loader
from monai_diffae.networks import build_autoencoder


class Images(torch.utils.data.Dataset):
    """Noise, or given images with given views; one image may be of one value."""

    def __init__(self, count=8, value=None, images=None, views=None):
        noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
        self.images = noise if images is None else images
        self.views = -self.images if views is None else views
        if value is not None:
            self.images[2] = value

    def __len__(self):
        return len(self.images)

    def __getitem__(self, item):
        _, i = item
        return {"image": self.images[i], "view": self.views[i], "id": f"case-{i}", "index": i}


@pytest.fixture(scope="session")
def image_data():
    return Images


@pytest.fixture(scope="session")
def make_network():
    def make(**settings):
        torch.manual_seed(0)
        sizes = {"base_channels": 4, "channel_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4}
        network = build_autoencoder(2, 1, **{**sizes, **settings})
        torch.nn.init.normal_(network.unet.head[-1].weight, std=0.1)
        return network

    return make


@pytest.fixture(scope="session")
def make_trainer(make_network):
    def make(
        batch_size=4, prepare=AutoencoderPrepareBatch, data=None, lr=0.0, network=None, called=None, rank=0,
        world_size=1, schedule=None, encoder_key=None, **settings,
    ):  # fmt: skip
        """``called`` is the network as the trainer calls it, wrapped for several processes."""
        network, schedule = network or make_network(), schedule or DiffusionSchedule(prediction="v")
        loader = training_loader(data or Images(), batch_size, rank=rank, world_size=world_size)
        defaults = {
            "device": torch.device("cpu"), "max_epochs": 1, "precision": "fp32", "channels_last": False,
            "train_data_loader": loader, "loss_function": torch.nn.MSELoss(reduction="none"),
        }  # fmt: skip
        trainer = DiffusionTrainer(
            schedule=schedule, network=called or network,
            optimizer=torch.optim.AdamW(network.parameters(), lr=lr, fused=network.unet.head[-1].weight.is_cpu),
            inferer=DiffusionAutoencoderInferer(schedule), prepare_batch=prepare(schedule, encoder_key=encoder_key),
            **{**defaults, **settings},
        )  # fmt: skip
        StepSeeding(0, rank).attach(trainer)
        return trainer

    return make
