"""The model zoo's test of a bundle's training on several GPUs; without GPUs, it runs two processes on the CPU."""

import json
import os
import subprocess
import sys
import unittest

import torch
from test_BUNDLE_NAME import BUNDLE, QUICK, BundleWithScans


class TestBundleOnSeveralDevices(BundleWithScans):
    def test_train_mgpu_config(self):
        names = ("configs/train.json", "configs/multi_gpu_train.json")
        keys = json.loads((BUNDLE / "configs" / "train.json").read_text())
        values = {
            "bundle_root": BUNDLE, "dataset_dir": self.folder / "scans", "output_dir": self.folder / "trained", **QUICK
        }  # fmt: skip
        settings = [str(word) for key, value in values.items() if key in keys for word in (f"--{key}", value)]
        processes = max(2, torch.cuda.device_count())
        subprocess.check_call(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
                "-m", "monai.bundle", "run", "--config_file", str([str(BUNDLE / name) for name in names]),
                "--meta_file", str(BUNDLE / "configs" / "metadata.json"), *settings,
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.assertTrue((self.folder / "trained" / "models" / "model.pt").is_file())


if __name__ == "__main__":
    unittest.main()
