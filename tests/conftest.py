"""Fixtures that several test files share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@dataclass(frozen=True)
class TinyBundle:
    """A bundle trained for a few steps on a virtual cohort: ``directory`` is the bundle, ``cohort`` its table."""

    directory: Path
    cohort: Path


TINY = {
    "image_size": [16, 16],
    "base_channels": 8,
    "channel_mult": [1, 2],
    "z_channels": 8,
    "network_def#unet#time_embed_channels": 16,
    "inferer#steps": 3,
    "inferer#invert_steps": 4,
    "max_epochs": 1,
    "batch_size": 4,
    "val_batch_size": 4,
    "num_pictures": 0,
    "picture_steps": 2,
    "probe_interval": 0,
    "mlflow": False,
    "device": "cpu",
}
"""Config ids and values that make a bundle of the 2D model train in a second or two on a CPU."""


@pytest.fixture
def tiny_settings() -> dict[str, Any]:
    """``TINY``, for tests that train a bundle of their own."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A trained 2D bundle: 12 virtual patients of 16 x 16, one epoch, weights that know nothing."""
    from monai_diffae.apps.training.train import train
    from monai_diffae.bundle.folders import init_bundle
    from monai_diffae.data.samples import make_virtual_cohort

    root = tmp_path_factory.mktemp("tiny")
    cohort = make_virtual_cohort(root / "cohort", num_patients=12, size=16, val_fraction=0.2, test_fraction=0.3)
    directory = init_bundle(root / "bundle", "diffae_2d")
    train(directory, cohort, overrides=TINY)
    return TinyBundle(directory, cohort)


@pytest.fixture(scope="session")
def official() -> ModuleType:
    """``tests/official/official_reference.py``: Diff-AE a second time, and random weights under official names."""
    spec = spec_from_file_location("official_reference", Path(__file__).parent / "official" / "official_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of 16 virtual patients of 16 x 16: 10 for training, 3 for validation, 3 for test."""
    from monai_diffae.data.samples import make_virtual_cohort

    folder = tmp_path_factory.mktemp("small") / "cohort"
    return make_virtual_cohort(folder, num_patients=16, size=16, val_fraction=0.2, test_fraction=0.2)


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders with 15 pictures of 16 x 16 each: noisy disks, ``small`` and ``large``."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("classes") / "scans"
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] - 7.5
    for name, radius in (("small", 3.0), ("large", 6.0)):
        (folder / name).mkdir(parents=True)
        for number in range(15):
            disk = (np.hypot(x, y) < radius) * 180 + generator.uniform(0, 60, (16, 16))
            Image.fromarray(disk.astype(np.uint8)).save(folder / name / f"{name} ({number}).png")
    return folder


@pytest.fixture(scope="session")
def make_workflow_anywhere(small_cohort: Path) -> Callable[..., Any]:
    """Builds the workflow of the 2D training bundle, tiny, with overrides ``{id: value}``; they name ``output_dir``."""
    import warnings

    from monai.bundle import ConfigWorkflow

    root = Path(__file__).parents[1] / "bundles" / "diffae_2d"

    def make(overrides: dict[str, Any] | None = None, initialize: bool = True) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            workflow = ConfigWorkflow(str(root / "configs" / "train.json"), logging_file=False, workflow_type="train")
        values = {"bundle_root": str(root), "dataset_dir": str(small_cohort)}
        workflow.parser.update({**TINY, **values, **(overrides or {})})
        if initialize:
            workflow.initialize()
        return workflow

    return make


@pytest.fixture
def make_workflow(make_workflow_anywhere: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """The same, with ``tmp_path / "out"`` as the output folder."""

    def make(overrides: dict[str, Any] | None = None, initialize: bool = True) -> Any:
        return make_workflow_anywhere({"output_dir": str(tmp_path / "out"), **(overrides or {})}, initialize)

    return make


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Runs the program in this process: (exit code, standard output, standard error)."""
    from monai_diffae import cli

    def call(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["monai-diffae", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call
