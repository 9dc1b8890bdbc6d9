"""MONAI's own datasets, loaders and handlers in a training, and what a shipped training names."""

import json
from pathlib import Path

import pytest
import torch
from tiny_bundles import weights

ROOT = Path(__file__).parents[2]


def dataset(name, split, transform, **options):
    return {"_target_": name, "data": f"$@cohort.items('{split}')", "transform": transform, **options}


CACHED = {
    "train#dataset": dataset("CacheDataset", "train", ["@preprocessing", "@augmentation"], progress=False),
    "validate#dataset": dataset("CacheDataset", "val", "@preprocessing", progress=False),
}


def trained(make_workflow, overrides):
    workflow = make_workflow({"num_pictures": 1, "probe_interval": 1, "calibration_cases": 2, **overrides})
    workflow.run()
    folder = Path(workflow.parser.get_parsed_content("output_dir"))
    assert all(bool(tensor.isfinite().all()) for tensor in weights(folder).values())
    assert (folder / "pictures" / "latest.png").is_file()
    return workflow


def test_datasets_of_monai_train_as_ours_do(make_workflow, tmp_path):
    plain = {"augmentation#transforms": [], "precision": "fp32"}
    CACHED_PLAIN = {**CACHED, "train#dataset": {**CACHED["train#dataset"], "transform": "@preprocessing"}}
    for name, datasets in {"own": {}, "cached": CACHED_PLAIN}.items():
        trained(make_workflow, {**plain, **datasets, "output_dir": str(tmp_path / name)})
    torch.testing.assert_close(weights(tmp_path / "own"), weights(tmp_path / "cached"), rtol=0, atol=0)


def test_a_persistent_dataset_trains(make_workflow, tmp_path):
    persistent = dataset("PersistentDataset", "train", ["@preprocessing", "@augmentation"], cache_dir=str(tmp_path))
    trained(make_workflow, {**CACHED, "train#dataset": persistent})


@pytest.mark.parametrize("name", ["DataLoader", "ThreadDataLoader"])
@pytest.mark.parametrize("datasets", [{}, CACHED], ids=["ours", "cached"])
def test_loaders_of_monai_train(make_workflow, name, datasets):
    loader = {"_target_": name, "dataset": "@train#dataset", "batch_size": 4, "shuffle": True}
    trained(make_workflow, {**datasets, "train#dataloader": loader})


def test_handlers_of_monai_see_the_training(make_workflow, tmp_path):
    handlers = json.loads((ROOT / "bundles" / "diffae_2d" / "configs" / "train.json").read_text())["train"]["handlers"]
    handlers += [
        {
            "_target_": "StatsHandler",
            "tag_name": "train_loss",
            "output_transform": "$monai.handlers.from_engine(['loss'], first=True)",
        },
        {
            "_target_": "MLFlowHandler",
            "tracking_uri": f"sqlite:///{tmp_path}/a.db",
            "experiment_name": "a",
            "output_transform": "$monai.handlers.from_engine(['loss'], first=True)",
        },
        {
            "_target_": "CheckpointSaver",
            "save_dir": str(tmp_path / "saved"),
            "save_dict": {"model": "@network"},
            "save_final": True,
        },
    ]
    trained(make_workflow, {"train#handlers": handlers})
    assert list((tmp_path / "saved").iterdir())
