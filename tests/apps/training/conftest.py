"""Plans without the prediction of memory, which takes seconds."""

import numpy as np
import pytest

from monai_diffae.apps.training import proposals
from monai_diffae.engines.memory import Memory


@pytest.fixture
def quick(monkeypatch):
    """Predictions by a rule of thumb in place of the network's run: 1 MiB per voxel and image, a tenth recomputed."""

    def run_memory(network, workload):
        share = 0.1 if network.unet.middle_stage.use_checkpoint else 1
        width = network.unet.config["base_channels"] / 16
        training = workload.batch_size * share * width
        return Memory(
            0, int(np.prod(workload.image_shape) * 2**20 * max(training, workload.val_batch_size * 0.05)), 0, 0
        )

    monkeypatch.setattr(proposals, "run_memory", run_memory)
