"""Goal R18: two processes train the weights that one process trains at the same global batch."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from monai_diffae.engines.data_parallel import distributed, lay_out, memory_format
from monai_diffae.errors import ConfigError

pytestmark = pytest.mark.goal(id="R18")

# Processes are forked after the imports, which take much longer than the training.
PROGRAM = """
import hashlib, json, multiprocessing, sys
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.engines import AutoencoderPrepareBatch, DiffusionTrainer, StepSeeding, distributed, training_loader
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.networks import build_autoencoder

class Images(torch.utils.data.Dataset):
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, item):
        return {"image": self.images[item[1]], "id": str(item[1])}

def train(rank, world_size, port, channels_last, results):
    torch.manual_seed(0)
    weights = network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
    if world_size > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
        network = distributed(network, "cpu", channels_last)
    schedule = DiffusionSchedule(prediction="v")
    trainer = DiffusionTrainer(
        schedule=schedule, network=network, device=torch.device("cpu"), max_epochs=5, precision="fp32",
        train_data_loader=training_loader(Images(), 4 // world_size, rank=rank, world_size=world_size),
        optimizer=torch.optim.AdamW(weights.parameters(), lr=1e-3, fused=True),
        loss_function=torch.nn.MSELoss(reduction="none"), inferer=DiffusionAutoencoderInferer(schedule),
        prepare_batch=AutoencoderPrepareBatch(schedule), channels_last=channels_last,
    )
    StepSeeding(0, rank).attach(trainer)
    losses, checksums = [], []

    def keep():
        losses.append(float(trainer.state.output[0]["loss"]))
        content = b"".join(weight.detach().numpy().tobytes() for weight in weights.parameters())
        checksums.append(hashlib.sha256(content).hexdigest())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    trainer.run()
    results.put((rank, losses, checksums))

fork = multiprocessing.get_context("fork")
rows = []
for port, world_size, channels_last in json.loads(sys.argv[1]):
    results = fork.Queue()
    arguments = (world_size, port, channels_last, results)
    ranks = [fork.Process(target=train, args=(rank, *arguments)) for rank in range(world_size)]
    for rank in ranks:
        rank.start()
    rows.append(sorted(results.get(timeout=300) for _ in ranks))
    for rank in ranks:
        rank.join()
print(json.dumps(rows))
"""
TOLERANCE = 1e-4  # relative difference of the loss in each of 20 steps; docs/training.md states it


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_two_processes_equal_one_in_either_memory_format():
    runs = [(free_port(), world_size, channels_last) for channels_last in (True, False) for world_size in (1, 2)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PROGRAM, json.dumps(runs)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    for alone, together in (rows[:2], rows[2:]):
        ((_, losses, _),) = alone
        (_, first, first_weights), (_, second, second_weights) = together
        assert len(losses) == 20
        assert [(a + b) / 2 for a, b in zip(first, second, strict=True)] == pytest.approx(losses, rel=TOLERANCE)
        assert first_weights == second_weights  # after every step


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_wrapped_network_keeps_its_memory_format(group):
    network = torch.nn.Conv2d(4, 8, 3)
    late = DistributedDataParallel(torch.nn.Conv2d(4, 8, 3))
    wrapped = distributed(network, "cpu")
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    lay_out(wrapped, memory_format(wrapped, channels_last=True))
    with pytest.raises(ConfigError, match="would mix up the gradients"):
        lay_out(late, torch.channels_last)


def test_the_memory_format_fits_the_number_of_axes():
    assert memory_format(torch.nn.Conv3d(1, 1, 3), channels_last=True) == torch.channels_last_3d
    assert memory_format(torch.nn.Conv2d(1, 1, 3), channels_last=True) == torch.channels_last
    assert memory_format(torch.nn.Conv2d(1, 1, 3), channels_last=False) == torch.contiguous_format
