"""Goal R5: a flipped bit in weights is refused, or harmless."""

import zipfile

import numpy as np
import pytest
import torch

from monai_diffae.bundle.weights import read_weights
from monai_diffae.data.archives import check_archive
from monai_diffae.errors import ConfigError, ScanError, UnsafeInputError
from monai_diffae.handlers.checkpoint_file import read_checkpoint


@pytest.fixture
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 5))


@pytest.mark.parametrize("reader", ["weights", "checkpoint"])
def test_no_flipped_bit_changes_weights(tmp_path, network, reader):
    path = tmp_path / "model.pt"
    state = network.state_dict()
    torch.save(state, path)
    content = path.read_bytes()
    refused = 0
    for bit in np.random.default_rng(0).integers(8 * len(content), size=150):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        try:
            read = read_weights(path, network) if reader == "weights" else read_checkpoint(path, {*state})
        except (ScanError, ConfigError, UnsafeInputError):
            refused += 1
        else:
            assert all(torch.equal(read[name], state[name]) for name in state)
    assert refused > 100


def test_other_files_pass(tmp_path):
    (tmp_path / "a.txt").write_text("no archive")
    check_archive(tmp_path / "a.txt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", "content")
    check_archive(tmp_path / "a.zip")
