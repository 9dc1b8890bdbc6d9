"""The networks are one graph: torch.compile and torch.export find nothing that they would have to leave to Python."""

import pytest
import torch

from monai_diffae.networks import build_autoencoder


@pytest.mark.parametrize("spatial_dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_encoder_and_denoiser_compile_without_a_graph_break(spatial_dims):
    sizes = {"base_channels": 8, "channel_mult": (1, 2), "z_channels": 4, "time_embed_channels": 8}
    network = build_autoencoder(spatial_dims, **sizes, attention_levels=(1,)).eval()
    images, t = torch.rand(2, 1, *[16] * spatial_dims), torch.tensor([3, 5])
    with torch.no_grad():
        z_sem = network.encode(images)
        compiled = torch.compile(network.encode, fullgraph=True, backend="eager")
        assert torch.equal(compiled(images), z_sem)
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        assert torch.equal(compiled(images, t, z_sem), network(images, t, z_sem))
