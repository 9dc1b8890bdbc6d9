"""DDIM sampling and inversion reproduce the results of the official Diff-AE code."""

from pathlib import Path

import pytest
import torch

from monai_diffae.diffusion import DiffusionSchedule, ddim
from monai_diffae.official import load_official, load_official_latent
from monai_diffae.official.checkpoint_files import read_safetensors

PARITY = Path(__file__).parents[3] / "shared" / "parity"
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason="the results of the official code are not available")

LONG = [("official_1ch_32px", 20), ("official_3ch_64px", 10)]
RUNS = [("official_1ch_32px", 10), *(pytest.param(*run, marks=pytest.mark.slow) for run in LONG)]
CLIP = {"clip": (-1.0, 1.0), "noclip": None}


def assert_close(actual, expected, relative_to_largest):
    assert float((actual - expected).abs().max() / expected.abs().max()) < relative_to_largest


@pytest.mark.parametrize(("name", "steps"), RUNS)
@pytest.mark.parametrize("clip", CLIP)
@torch.no_grad()
def test_trajectories(name, steps, clip):
    tensors, _ = read_safetensors(PARITY / f"{name}.safetensors")
    network = load_official(PARITY / f"{name}.safetensors")
    schedule = DiffusionSchedule(prediction="eps", spacing="leading")

    def denoise(x, t):
        return network(x, t, tensors["z_sem"])

    decoded = ddim(denoise, schedule, tensors["x_t"], schedule.decoding_levels(steps), clip_range=CLIP[clip])
    assert_close(decoded, tensors[f"ddim{steps}_{clip}_decoded_from_x_t"], 1e-3)
    x_T = ddim(denoise, schedule, tensors["x0"], schedule.paper_inversion_levels(steps), clip_range=CLIP[clip])
    assert_close(x_T, tensors[f"ddim{steps}_{clip}_x_T"], 1e-3)


@torch.no_grad()
def test_the_latent_ddim():
    tensors, _ = read_safetensors(PARITY / "official_latent_mlp.safetensors")
    network = load_official_latent(PARITY / "official_latent_mlp.safetensors")
    schedule = DiffusionSchedule(prediction="eps", spacing="leading", beta_start=0.008, beta_end=0.008)
    z = ddim(network, schedule, tensors["z_t"], schedule.decoding_levels(20))
    assert_close(z, tensors["ddim20_noclip_decoded_from_z_t"], 1e-5)
