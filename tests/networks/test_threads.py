import threading

import pytest
import torch
from torch import nn

from monai_diffae.networks.threads import _SMALL, evaluation_work, threads_for

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.mark.parametrize(("work", "threads"), [(1, 1), (_SMALL - 1, 1), (_SMALL, 2)])
def test_small_work_gets_one_thread(work, threads):
    with threads_for(work, "cpu"):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_all_threads_are_back_after_an_error():
    with pytest.raises(ZeroDivisionError), threads_for(1, "cpu"):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 2


def test_a_number_of_the_user_is_used_for_all_work(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # as --threads 2 does
    with threads_for(1, "cpu"):
        assert torch.get_num_threads() == 2


def test_a_gpu_needs_no_other_number():
    with threads_for(1, "cuda"):
        assert torch.get_num_threads() == 2


def test_a_thread_that_starts_meanwhile_has_all_threads():
    numbers = []
    thread = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
    with threads_for(1, "cpu"):
        thread.start()
        thread.join()
    assert numbers == [2]


@pytest.mark.parametrize(
    ("network", "shape", "work"),
    [
        (nn.Sequential(nn.SiLU(), nn.Conv2d(3, 4, 3)), (2, 3, 5, 6), 2 * 30 * 16 * 9),
        (nn.Conv3d(1, 8, 3), (1, 1, 4, 4, 4), 64 * 64 * 27),
        (nn.Linear(2, 2), (1, 2), _SMALL),
    ],
)
def test_work_is_that_of_a_convolution_at_full_resolution(network, shape, work):
    assert evaluation_work(network, torch.zeros(shape)) == work


def test_a_small_optimiser_step_is_the_same_to_the_bit_with_any_number_of_threads():
    def trained(threads):
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(size, generator=generator)) for size in (1, 65, 4097, 40001)]
        torch.set_num_threads(threads)
        optimizer = torch.optim.AdamW(weights, fused=True)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        return [weight.detach() for weight in weights]

    for one, two in zip(trained(1), trained(2), strict=True):
        assert torch.equal(one, two)
