"""The model zoo's test of a bundle: its training and its inference run on random images, and have all properties."""

import json
import shutil
import tempfile
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

BUNDLE = Path("models") / "BUNDLE_NAME"
QUICK = {
    "max_epochs": 1, "batch_size": 2, "val_batch_size": 2, "num_pictures": 0, "probe_interval": 0, "mlflow": False,
    "report_every": 1, "steps": 2, "invert_steps": 2,
}  # fmt: skip


def make_images(folder, config):
    """Ten random scans with the bundle's image size."""
    spacing = config.get("spacing_mm", [1.0, 1.0, 1.0])
    size = config["image_size"] if config["spatial_dims"] == 3 else [*config["image_size"], 1]
    for number in range(10):
        voxels = np.random.default_rng(number).integers(0, 200, size).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, 1.0])), folder / f"scan_{number}.nii.gz")


class BundleWithScans(unittest.TestCase):
    """A folder with scans for each test."""

    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.config = json.loads((BUNDLE / "configs" / "train.json").read_text())
        (self.folder / "scans").mkdir()
        make_images(self.folder / "scans", self.config)

    def tearDown(self):
        shutil.rmtree(self.folder)


class TestBundle(BundleWithScans):
    def run_workflow(self, name, kind, output):
        keys = json.loads((BUNDLE / "configs" / name).read_text())
        values = {
            "bundle_root": str(BUNDLE), "dataset_dir": str(self.folder / "scans"), "output_dir": str(output), **QUICK
        }  # fmt: skip
        workflow = ConfigWorkflow(
            workflow_type=kind, config_file=str(BUNDLE / "configs" / name),
            meta_file=str(BUNDLE / "configs" / "metadata.json"),
            logging_file=False, **{key: value for key, value in values.items() if key in keys},
        )  # fmt: skip
        workflow.initialize()
        self.assertEqual(workflow.check_properties(), [])
        workflow.run()
        workflow.finalize()

    def test_train_config(self):
        self.run_workflow("train.json", "train", self.folder / "trained")
        self.assertTrue((self.folder / "trained" / "models" / "model.pt").is_file())

    def test_inference_config(self):
        self.run_workflow("inference.json", "infer", self.folder / "reconstructed")
        self.assertEqual(len(list((self.folder / "reconstructed").rglob("*.nii.gz"))), 10)


if __name__ == "__main__":
    unittest.main()
