"""Which settings follow from a device. No GPU is needed: a setting is a function of the device's name."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import _get_fused_kernels_supported_devices
from torch.utils.data import Dataset

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.engines import AutoencoderPrepareBatch, DiffusionTrainer, training_loader, validation_loader
from monai_diffae.engines.device_settings import DeviceSettings, description
from monai_diffae.engines.precision import cpu_has_bf16, resolve_precision
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.networks import build_autoencoder

BUNDLES = Path(__file__).parents[2] / "bundles"
TRAININGS = sorted(
    path for name in ("train", "train_latent", "distill") for path in BUNDLES.glob(f"*/configs/{name}.json")
)
DEVICES = ("cpu", "cuda", "mps", "xpu")  # those that the key ``device`` accepts


class Images(Dataset[Any]):
    def __len__(self):
        return 4

    def __getitem__(self, item):
        return {"image": torch.zeros(1, 8, 8), "id": "a", "index": 0}


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


def test_loaders_pin_memory_for_a_gpu_only_and_their_workers_persist():
    for loader in (training_loader, validation_loader):
        assert loader(Images(), 2, device="cuda").pin_memory
        assert not loader(Images(), 2, device="cpu").pin_memory
    assert training_loader(Images(), 2, num_workers=2).persistent_workers


def test_workers_never_touch_a_gpu(monkeypatch, tmp_path):
    """A GPU that was used before a fork cannot be used after it. Workers are forked, and inherit the trap."""
    from monai.bundle import ConfigParser

    from monai_diffae.data import split_cohort
    from monai_diffae.data.samples import make_virtual_cohort

    def trap(*_):
        raise AssertionError("a worker touches the GPU")

    monkeypatch.setattr(torch.cuda, "_lazy_init", trap)
    cohort = make_virtual_cohort(tmp_path / "cohort", num_patients=4, size=16, val_fraction=0, test_fraction=0)
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / "diffae_2d" / "configs" / "train.json"))
    parser.update({"image_size": [16, 16], "device": "cpu", "output_dir": str(tmp_path)})
    parser.update({"train#dataset#data": split_cohort(cohort).items("train"), "train#dataset#progress": False})
    dataset = parser.get_parsed_content("train#dataset")
    dataset.prepare()
    loader = training_loader(dataset, 2, num_workers=1)
    batches = iter(loader)
    batch = next(batches)
    assert batch["image"].shape == (2, 1, 16, 16)
    assert all(value.device.type == "cpu" for value in batch.values() if isinstance(value, torch.Tensor))
    del batches, loader


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_shipped_trainings_leave_these_settings_to_the_device(path):
    config = json.loads(path.read_text())
    is_of_vectors = path.stem == "train_latent"  # in float32, which costs little there
    assert config["precision"] == ("fp32" if is_of_vectors else "auto")
    assert config["optimizer"]["fused"] is True
    assert set(DEVICES) <= set(_get_fused_kernels_supported_devices())
    for part in ("train", "validate"):
        assert config[part]["dataloader"]["device"] == "@device"
        assert "pin_memory" not in config[part]["dataloader"]
    trainer = config["train"]["trainer"]
    assert (trainer["precision"], trainer["device"]) == ("@precision", "@device")
    assert trainer["channels_last"] == (False if is_of_vectors else "@channels_last")
    assert config.get("channels_last", False) is not is_of_vectors
    assert config["validate"]["evaluator"].get("device") == "@device"


def trainer(**settings):
    network = build_autoencoder(2, base_channels=4, channel_mult=(1,), num_res_blocks=1, z_channels=4)
    schedule = DiffusionSchedule()
    return DiffusionTrainer(
        schedule=schedule, network=network, train_data_loader=training_loader(Images(), 2), max_epochs=1,
        optimizer=torch.optim.AdamW(network.parameters(), fused=True), device=torch.device("cpu"),
        loss_function=torch.nn.MSELoss(reduction="none"), inferer=DiffusionAutoencoderInferer(schedule),
        prepare_batch=AutoencoderPrepareBatch(schedule), **settings,
    )  # fmt: skip


def test_the_settings_are_logged_once(caplog):
    with caplog.at_level(logging.INFO, "monai_diffae.engines.trainer"):
        trainer(precision="fp32").run()
    lines = [record.getMessage() for record in caplog.records if record.name == "monai_diffae.engines.trainer"]
    assert lines == ["cpu: float32, channels last, fused AdamW, no workers"]
    loader = training_loader(Images(), 2, num_workers=1, device="cuda")
    settings = DeviceSettings.of("cuda", "bf16")
    line = description(settings, torch.contiguous_format, torch.optim.SGD([torch.zeros(1)]), loader)
    assert line.startswith("cuda")
    assert line.endswith(
        ": bfloat16, contiguous, SGD, 1 worker that persists, pinned memory, deterministic kernels, no TF32"
    )
