"""Images in channels_last stay in it: a training step and a decoding step copy no image from one format to another."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.engines.data_parallel import memory_format
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.networks import build_autoencoder

COPIES = (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


def is_image(tensor):
    """Squares and cubes, of which the tests' images consist; tokens of attention are none."""
    return tensor.ndim in (4, 5) and len(set(tensor.shape[2:])) == 1


def layout(tensor):
    """The format of an image; "any" if it has one channel or pixel."""
    last = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
    formats = (tensor.is_contiguous(), tensor.is_contiguous(memory_format=last))
    return {(True, True): "any", (True, False): "contiguous", (False, True): "channels last"}.get(formats, "other")


class FormatCopies(TorchDispatchMode):
    """The shapes of images that are copied to another format."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func in COPIES and is_image(output):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            if len({layout(source), layout(output)} - {"any"}) > 1:
                self.shapes.append(tuple(output.shape))
        return output


def test_copies_to_another_format_are_noticed():
    x = torch.zeros(2, 3, 4, 4)
    with FormatCopies() as copies:
        x.contiguous(memory_format=torch.channels_last).bfloat16().contiguous()
        torch.zeros_like(x).copy_(x)
    assert copies.shapes == [(2, 3, 4, 4)] * 2


def network(spatial_dims):
    torch.manual_seed(0)
    return build_autoencoder(
        spatial_dims, base_channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=4, time_embed_channels=8,
        attention_levels=(1,), z_grid=2,
    )  # fmt: skip


@pytest.mark.parametrize("spatial_dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_training_step_copies_the_means_of_the_cells_only(spatial_dims):
    """The means are flattened in the order of the weights of the layer that follows; they are tiny."""
    model = network(spatial_dims)
    form = memory_format(model, channels_last=True)
    model.to(memory_format=form)
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v")
    x0 = torch.rand(2, 1, *[16] * spatial_dims).to(memory_format=form)
    t, eps = torch.tensor([3, 500]), torch.randn_like(x0)
    with FormatCopies() as copies:
        with torch.autocast("cpu", torch.bfloat16):
            output = model(schedule.q_sample(x0, eps, t), t, x0)
        (output.float() - schedule.target(x0, eps, t)).square().mean().backward()
    assert copies.shapes == [(2, 16, *[2] * spatial_dims)]


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_decoding_copies_nothing(channels_last):
    model = network(2).eval()
    model.to(memory_format=memory_format(model, channels_last))
    inferer = DiffusionAutoencoderInferer(DiffusionSchedule(), steps=3)
    with FormatCopies() as copies:
        inferer.decode(torch.randn(2, 4), torch.randn(2, 1, 16, 16), model)
    assert copies.shapes == []


def test_on_a_gpu_group_norm_copies_to_the_usual_format():
    """Torch 2.13 does so on all devices but a CPU (pytorch#111824). If this fails, docs/training.md need not say so."""
    x = torch.empty(2, 32, 8, 8, device="meta").contiguous(memory_format=torch.channels_last)
    assert layout(torch.nn.functional.group_norm(x, 4)) == "contiguous"
