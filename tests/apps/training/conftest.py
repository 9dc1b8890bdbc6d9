"""Plans without measurements: predictions of memory and speed take seconds."""

from types import SimpleNamespace

import numpy as np
import pytest
from monai.bundle import ConfigParser

from monai_diffae import engines
from monai_diffae.apps.training import speed
from monai_diffae.engines.memory import GIB, Memory


@pytest.fixture
def machine(monkeypatch, measured_by):
    """A machine whose speed and memory are set by the test; it keeps the sizes of the grids that it measured.

    Memory is by a rule of thumb: KiB per voxel and image at a width of 16, a tenth if activations are recomputed.
    """
    this = SimpleNamespace(pixels_per_second=1e5, kib_per_voxel=10, free_gib=4, measured=[])

    def run_memory(network, workload):
        share = 0.1 if network.unet.middle_stage.use_checkpoint else 1
        width = network.unet.config["base_channels"] / 16
        images = max(workload.batch_size * share * width, workload.val_batch_size * 0.05)
        return Memory(0, int(np.prod(workload.image_shape) * this.kib_per_voxel * 2**10 * images), 0, 0)

    def measure_speed(config, device, items, batch_size):
        parser = ConfigParser(dict(config))
        size, width = parser.get("image_size"), parser.get("base_channels")
        this.measured.append(size)
        return speed.Speed(batch_size * np.prod(size) * (width / 16) ** 2 / this.pixels_per_second, batch_size, 0.1)

    this.measure_speed = measure_speed
    measured_by(monkeypatch, run_memory, lambda *arguments: this.measure_speed(*arguments))
    monkeypatch.setattr(engines, "free_memory", lambda device: this.free_gib and int(this.free_gib * GIB))
    return this
