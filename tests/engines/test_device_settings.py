"""Which settings follow from a device. No GPU is needed: a setting is a function of the device's name."""

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from monai_diffae.data import make_virtual_cohort, split_cohort
from monai_diffae.engines import training_loader
from monai_diffae.engines.precision import DeviceSettings, cpu_has_bf16, resolve_precision

BUNDLES = Path(__file__).parents[2] / "bundles"


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cuda", "auto", (torch.bfloat16, True, True)),
        ("cuda:3", "fp32", (torch.float32, True, True)),
        (torch.device("cuda", 1), "fp16", (torch.float16, True, True)),
        ("cpu", "auto", (torch.bfloat16 if cpu_has_bf16() else torch.float32, False, False)),
        ("cpu", "bf16", (torch.bfloat16, False, False)),
        ("mps", "auto", (torch.float32, False, True)),
    ],
)
def test_the_settings_of_each_device(device, precision, expected):
    settings = DeviceSettings.of(device, precision)
    assert (settings.dtype, settings.pin_memory, settings.non_blocking) == expected
    assert settings.device == torch.device(device)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_asks_the_gpu_that_is_used(capability, dtype, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (asked.append(device), capability)[1])
    assert resolve_precision("auto", "cuda:1") == dtype
    assert asked == [torch.device("cuda", 1)]


def test_workers_never_touch_a_gpu(monkeypatch, tmp_path):
    """A GPU that was used before a fork cannot be used after it. Workers are forked, and inherit the trap."""

    def trap(*_):
        raise AssertionError("a worker touches the GPU")

    monkeypatch.setattr(torch.cuda, "_lazy_init", trap)
    cohort = make_virtual_cohort(tmp_path / "cohort", num_patients=4, size=16, val_fraction=0, test_fraction=0)
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / "diffae_2d" / "configs" / "train.json"))
    parser.update({"image_size": [16, 16], "device": "cpu", "output_dir": str(tmp_path)})
    parser.update({"train#dataset#data": split_cohort(cohort).items("train")})
    dataset = parser.get_parsed_content("train#dataset")
    dataset.prepare()
    loader = training_loader(dataset, 2, num_workers=1)
    batches = iter(loader)
    batch = next(batches)
    assert batch["image"].shape == (2, 1, 16, 16)
    assert all(value.device.type == "cpu" for value in batch.values() if isinstance(value, torch.Tensor))
    del batches, loader
