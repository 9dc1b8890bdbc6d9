"""MONAI's own datasets, loaders and handlers in a training, and what a shipped train.json names."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from golden_bundles import GOLDEN
from tiny_bundles import TINY, weights

from monai_diffae import train
from monai_diffae.bundle import init_bundle
from monai_diffae.bundle.code import components, strings

ROOT = Path(__file__).parents[2]
TRAININGS = {path.parents[1].name: path for path in ROOT.glob("bundles/*/configs/train.json")}


def dataset(name, split, *transforms, **options):
    return {"_target_": name, "data": f"$@cohort.items('{split}')", "transform": list(transforms), **options}


CACHED = {"validate#dataset": dataset("CacheDataset", "val", "@preprocessing", progress=False)}
CACHED["train#dataset"] = dataset("CacheDataset", "train", "@preprocessing", "@augmentation", progress=False)
PERSISTENT = dataset(
    "PersistentDataset", "train", "@preprocessing", "@augmentation", cache_dir="$@output_dir + '/kept'"
)


def trained(make_workflow, overrides, folder):
    values = {"num_pictures": 1, "probe_interval": 1, "calibration_cases": 2, "output_dir": str(folder)}
    make_workflow({**values, **overrides}).run()
    assert (folder / "pictures" / "latest.png").is_file()
    return weights(folder)


@pytest.mark.slow
def test_a_cache_dataset_trains_the_same_weights_as_ours(make_workflow, tmp_path):
    plain = {"augmentation#transforms": [], "precision": "fp32"}
    own, cached = (trained(make_workflow, {**plain, **each}, tmp_path / str(len(each))) for each in ({}, CACHED))
    torch.testing.assert_close(own, cached, rtol=0, atol=0)


def test_labels_that_are_not_probed_with_datasets_of_monai_are_a_warning(make_workflow, caplog):
    workflow = make_workflow({**CACHED, "probe_interval": 1, "probe_targets": ["tilt"]})
    workflow.parser.get_parsed_content("validate#evaluator")
    assert "probe_targets: no label is probed, as this needs CachedCases" in caplog.text


def test_settings_that_other_networks_do_not_use_are_a_warning(make_workflow, caplog):
    make_workflow({"network_def": {"_target_": "monai_diffae.networks.preset", "name": "tiny"}})
    assert "base_channels: has no effect on this run" in caplog.text
    assert "strides:" not in caplog.text  # nobody has set it


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DataLoader", "ThreadDataLoader"])
@pytest.mark.parametrize(
    "datasets", [{}, CACHED, {**CACHED, "train#dataset": PERSISTENT}], ids=["ours", "cache", "kept"]
)
def test_datasets_and_loaders_of_monai_train(make_workflow, tmp_path, name, datasets):
    loader = {"_target_": name, "dataset": "@train#dataset", "batch_size": 4, "shuffle": True}
    assert trained(make_workflow, {**datasets, "train#dataloader": loader}, tmp_path / "out")


@pytest.mark.slow
def test_handlers_of_monai_see_the_training(make_workflow, tmp_path):
    handlers, saved = json.loads(TRAININGS["diffae_2d"].read_text())["train"]["handlers"], tmp_path / "saved"
    loss = {"output_transform": "$monai.handlers.from_engine(['loss'], first=True)"}
    handlers += [
        {"_target_": "StatsHandler", **loss},
        {"_target_": "MLFlowHandler", "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db", **loss},
        {"_target_": "CheckpointSaver", "save_dir": str(saved), "save_dict": {"model": "@network"}, "save_final": True},
    ]
    trained(make_workflow, {"train#handlers": handlers}, tmp_path / "out")
    assert [file.suffix for file in saved.iterdir()] == [".pt"]
    assert (tmp_path / "mlflow.db").is_file()


@pytest.mark.slow
def test_the_train_json_of_an_earlier_version_trains_the_same_weights(small_cohort, tmp_path):
    for name in ("now", "earlier"):
        folder = init_bundle(tmp_path / name)
        if name == "earlier":
            shutil.copyfile(GOLDEN / "0.1.0" / "train.json", folder / "configs" / "train.json")
        train(folder, small_cohort, overrides=TINY)
    torch.testing.assert_close(weights(tmp_path / "now"), weights(tmp_path / "earlier"), rtol=0, atol=0)


# -- what the shipped trainings may name: a federation that checks configurations can use these lists ------------------

MONAIS = """
    Compose CopyItemsd LrScheduleHandler RandAdjustContrastd RandAffined RandCoarseDropoutd RandFlipd RandGaussianNoised
    RandGaussianSharpend RandGaussianSmoothd RandScaleIntensityd RandSpatialCropd
    ResizeWithPadOrCropd Resized SimpleInferer monai.networks.nets.AutoencoderKL torch.manual_seed torch.nn.L1Loss
    torch.nn.MSELoss torch.optim.AdamW
"""
OURS = """
    apps.evaluation.finish_training bundle.TrainingDescription bundle.check_all_set bundle.check_run
    bundle.check_training bundle.describe_model bundle.describe_preprocessing bundle.running_config data.CachedCases
    data.ModelImages data.remove_cache
    data.split_cohort diffusion.DiffusionSchedule engines.AutoencoderPrepareBatch engines.DiffusionEvaluator
    engines.DiffusionTrainer engines.FirstStageEvaluator engines.FirstStageTrainer engines.FixedPrepareBatch
    engines.StepSeeding engines.learning_rate_schedule engines.training_loader engines.validation_loader
    handlers.BadScans handlers.CheckpointKeeper handlers.EMA handlers.FirstStagePictures handlers.LatentScale
    handlers.MLflowTracking handlers.ReconstructionPictures handlers.RunningStatistics handlers.TrainingCurves
    handlers.TrainingProgress handlers.Validation handlers.ZSemProbes
    inferers.DiffusionAutoencoderInferer inferers.FirstStageInferer metrics.ValidationLoss metrics.ZSemUsage
    networks.DenoisingUNet networks.DiffusionAutoencoder networks.FirstStage networks.SemanticEncoder
    transforms.ReadScand transforms.SmoothForSpacingd transforms.ToModelRanged transforms.ToRASd transforms.ToRegiond
    transforms.ToSpacingd
"""
FORMULAS = """
    $@cohort.counts()
    $@cohort.fingerprint
    $@cohort.items('train')
    $@cohort.items('val')
    $@cohort.with_mask_labels().cases
    $@ema.network
    $@model_range[0]
    $@network.parameters()
    $@network_def.check_patch_size(@patch_size, @image_size)
    $@network_def.to(@device)
    $@output_dir + '/cache'
    $@output_dir + '/models'
    $@train#trainer#max_epochs * len(@train#dataloader)
    $@train#trainer.run()
    $[*@channel_mult, @channel_mult[-1]]
    $[@ema, *@train#handlers, @validate#handler, @train#checkpoint]
    $[min(side, 32) for side in @image_size]
    $[weight for weight in @network.parameters() if weight.requires_grad]
    $import monai_diffae.networks as networks
    $len(@validate#dataset)
    $list(dict.fromkeys([*@image_keys, @encoder_key]))
    $max(@image_size)
    $networks.anisotropic_strides(@image_size, @spacing_mm, len(@channel_mult))
    $torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    $torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0
"""
#: lines, formulas, components, and those of MONAI or torch among them; aims: 300 lines, 20 of MONAI
COUNTS = {"diffae_2d": (478, 20, 55, 10), "diffae_3d": (477, 21, 58, 10), "autoencoder_kl_3d": (372, 17, 52, 12)}


@pytest.mark.parametrize("bundle", TRAININGS)
def test_a_shipped_training_names_only_what_is_listed(bundle):
    text = TRAININGS[bundle].read_text()
    config = json.loads(text)
    targets = [part["_target_"] for _, part in components(config)]
    formulas = [value for value in strings(config) if value.startswith("$")]
    assert set(targets) <= {*MONAIS.split(), *(f"monai_diffae.{name}" for name in OURS.split())}
    assert set(formulas) <= {line.strip() for line in FORMULAS.splitlines()}
    counts = (text.count("\n"), len(formulas), len(targets), sum(name in MONAIS.split() for name in targets))
    assert counts == COUNTS.get(bundle, counts)
