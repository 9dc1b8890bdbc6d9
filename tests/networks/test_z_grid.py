"""In an export and on a GPU, products with matrices replace PyTorch's adaptive pooling: they give the same means."""

import pytest
import torch

from monai_diffae.networks.z_grid import CellMeans, ZMap

SIZES = [((2, 2), (4, 6)), ((2, 3), (5, 7)), ((4, 4), (2, 3)), ((1, 1), (3, 2)), ((2, 2, 1), (5, 2, 3))]


@pytest.mark.parametrize(("cells", "size"), SIZES)
def test_means_over_cells(cells, size, monkeypatch):
    x, means = torch.randn(2, 3, *size), CellMeans(cells)
    pooled = means(x)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(means(x), pooled, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("cells", "size"), SIZES)
def test_maps_of_cells(cells, size, monkeypatch):
    x, z_sem, z_map = torch.randn(2, 3, *size), torch.randn(2, 4), ZMap(3, 4, cells)
    torch.nn.init.normal_(z_map.linear.weight)
    drawn = z_map(x, z_map.values(z_sem))
    assert not torch.equal(drawn, x)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(z_map(x, z_map.values(z_sem)), drawn, rtol=1e-6, atol=1e-6)
