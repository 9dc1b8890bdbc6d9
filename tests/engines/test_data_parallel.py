"""Goal R18: two processes train the weights that one process trains at the same global batch."""

import hashlib
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from forked_program import free_port
from ignite.engine import Events
from torch.nn.parallel import DistributedDataParallel

from monai_diffae.engines import distributed
from monai_diffae.engines.losses import encoding_both
from monai_diffae.engines.trainer import lay_out, memory_format
from monai_diffae.errors import ConfigError

pytestmark = pytest.mark.goal(id="R18")

TOLERANCE = 1e-4  # relative difference of the loss in each of 20 steps; docs/training.md states it


@pytest.fixture
def train(make_trainer, make_network, image_data):
    def train(rank, world_size, port, channels_last, epochs, results):
        torch.set_num_threads(1)
        weights = network = make_network()
        if world_size > 1:
            address = f"tcp://127.0.0.1:{port}"
            dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
            network = distributed(network, "cpu", channels_last)
        trainer = make_trainer(
            4 // world_size, network=weights, called=network, rank=rank, world_size=world_size, lr=1e-3,
            data=image_data(16), max_epochs=epochs, channels_last=channels_last,
        )  # fmt: skip
        losses, checksums = [], []

        def keep():
            losses.append(float(trainer.state.output[0]["loss"]))
            content = b"".join(weight.detach().numpy().tobytes() for weight in weights.parameters())
            checksums.append(hashlib.sha256(content).hexdigest())

        trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
        trainer.run()
        results.put((rank, losses, checksums))

    return train


@pytest.mark.parametrize(
    ("channels_last", "epochs"), [(True, 2), *(pytest.param(last, 5, marks=pytest.mark.slow) for last in (True, False))]
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="autograd cannot be forked once it has threads for a GPU")
def test_two_processes_equal_one(train, channels_last, epochs):
    fork = multiprocessing.get_context("fork")

    def run(world_size):
        results = fork.Queue()
        arguments = (world_size, free_port(), channels_last, epochs, results)
        ranks = [fork.Process(target=train, args=(rank, *arguments), daemon=True) for rank in range(world_size)]
        for rank in ranks:
            rank.start()
        rows = sorted(results.get(timeout=120) for _ in ranks)
        for rank in ranks:
            rank.join()
        return rows

    ((_, losses, _),) = run(1)
    (_, first, first_weights), (_, second, second_weights) = run(2)
    assert len(losses) == 4 * epochs
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
    assert memory_format(torch.nn.Conv3d(1, 1, 3), channels_last=True) == torch.channels_last_3d
    assert memory_format(torch.nn.Conv2d(1, 1, 3), channels_last=False) == torch.contiguous_format


def test_a_wrapped_network_encodes_both_views_and_gives_them_gradients(group, make_network):
    network = make_network()
    x_t, seen, drawn = torch.randn(3, 4, 1, 8, 8)
    gradients = []
    for called in (network, distributed(network, "cpu", channels_last=False)):
        network.zero_grad()
        with encoding_both(called) as z_sem:
            output = called(x_t, torch.tensor([5, 500, 7, 0]), torch.cat([seen, drawn]))
        (output.square().mean() + (z_sem[0] ** 3).mean()).backward()
        gradients.append(torch.cat([p.grad.flatten().clone() for p in network.parameters()]))
    torch.testing.assert_close(*gradients)
