"""The targets and expressions that a configuration may use without being trusted."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from monai_diffae.bundle.folders import shipped

_RESNETS = tuple(f"resnet{layers}" for layers in (10, 18, 34, 50, 101, 152, 200))
_LAYERS = (
    "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "Flatten", "GELU", "Identity", "LayerNorm", "LeakyReLU", "Linear",
    "ReLU", "Sequential", "SiLU", "Tanh", "L1Loss", "MSELoss", "SmoothL1Loss",
)  # fmt: skip
_TRANSFORMS = (
    "AdjustContrastd", "BorderPadd", "CenterSpatialCropd", "CropForegroundd", "DivisiblePadd", "EnsureChannelFirstd",
    "EnsureTyped", "Flipd", "GaussianSharpend", "GaussianSmoothd", "HistogramNormalized", "MedianSmoothd",
    "NormalizeIntensityd", "Orientationd", "Rand2DElasticd", "Rand3DElasticd", "RandAdjustContrastd", "RandAffined",
    "RandAxisFlipd", "RandBiasFieldd", "RandCoarseDropoutd", "RandCoarseShuffled", "RandFlipd", "RandGaussianNoised",
    "RandGaussianSharpend", "RandGaussianSmoothd", "RandGibbsNoised", "RandHistogramShiftd", "RandRicianNoised",
    "RandRotate90d", "RandRotated", "RandScaleIntensityd", "RandShiftIntensityd", "RandSimulateLowResolutiond",
    "RandSpatialCropd", "RandStdShiftIntensityd", "RandZoomd", "Resized", "Rotate90d",
    "ScaleIntensityRangePercentilesd", "ScaleIntensityRanged", "ScaleIntensityd", "Spacingd", "SpatialCropd",
    "SpatialPadd", "ThresholdIntensityd", "Zoomd",
)  # fmt: skip
# None of them reads or writes files, or takes the name of something to call. Each of them is harmless by itself.
_PLAIN_TARGETS = frozenset(
    {
        *(f"monai.networks.nets.{name}" for name in _RESNETS),
        *(f"torch.nn.{name}" for name in _LAYERS),
        *(f"torch.optim.{name}" for name in ("Adam", "AdamW", "RAdam", "SGD")),
        *_TRANSFORMS,
        *(f"monai.transforms.{name}" for name in _TRANSFORMS),
        "monai_diffae.networks.EncoderAdapter",
        "monai_diffae.networks.preset",
        "torch.nn.parallel.DistributedDataParallel",  # of earlier bundles
    }
)
_WRITTEN_BY_TRAINING = ("$@bundle_root + '/models'",)
# Add an expression here when you remove it from the shipped configurations, or earlier bundles no longer run.
_EARLIER = (
    "$[@device] if @device.type == 'cuda' else None",
    "$[side / 8 for side in @image_size]",
    "$bundle.check_start(@start_from, @output_dir, @model_config)",
    "$bundle.use_given_data()",
    "$engines.check_memory(@network_def, engines.Workload((@in_channels, *@image_size), @device, @precision, "
    "@batch_size, @val_batch_size, @num_pictures)) if @check_memory else None",
    "$engines.check_memory(@network_def, engines.Workload((@in_channels, *@image_size), @device, @precision, "
    "@batch_size, @val_batch_size, @num_pictures, @first_stage)) if @check_memory else None",
    "$handlers.log_bundle(@output_dir, lambda folder: bundle.export_bundle(@bundle_root, @output_dir, folder), "
    "@tracking_uri) if @mlflow and @rank == 0 else None",
    "$handlers.log_bundle(@output_dir, lambda folder: bundle.export_bundle(@bundle_root, @output_dir, folder), "
    "@tracking_uri) if @mlflow else None",
    "$max(1, 250 * @batch_size // sum(@embedded['split'] == 'train'))",
    "$min(4, min(@image_size) // 2 ** len(@network_def#channel_mult))",
    "$min(@warmup_steps, @train#trainer#max_epochs * len(@train#dataloader) // 10)",
    "$networks.anisotropic_strides(@first_stage.latent_shape([1, *@image_size])[1:], @spacing_mm, "
    "len(@network_def#channel_mult))",
    "$networks.anisotropic_strides(@image_size, @spacing_mm, len(@network_def#channel_mult))",
)
_SHIPPED_RUNS = (
    "train.json", "train_latent.json", "distill.json", "multi_gpu_train.json", "multi_gpu_train_latent.json",
    "latent_paper.json", "federated.json",
)  # fmt: skip


@dataclass(frozen=True)
class KnownCode:
    """The targets and expressions that may run without being trusted.

    Attributes:
        targets: values of ``_target_``.
        expressions: texts that begin with ``$``, imports included, with the separator ``::`` in ids.
    """

    targets: frozenset[str]
    expressions: frozenset[str]

    def has_expression(self, text: str) -> bool:
        """Whether an expression may run. MONAI accepts ``::`` and ``#`` in ids, and evaluates both alike."""
        return _normalised(text) in self.expressions


@functools.cache
def known_code() -> KnownCode:
    """The targets and expressions of all shipped trainings and overlays, and the lists of this file."""
    files = [file for name in _SHIPPED_RUNS for file in shipped("bundles").glob(f"*/configs/{name}")]
    configs = [json.loads(file.read_text(encoding="utf-8")) for file in [*files, *shipped("overlays").glob("*.json")]]
    targets, expressions = set(_PLAIN_TARGETS), {*_WRITTEN_BY_TRAINING, *_EARLIER}
    for key, text in _texts(configs, ""):
        if key.rpartition("#")[2] == "_target_":  # an overlay may replace the target alone
            targets.add(text)
        elif text.startswith("$"):
            expressions.add(text)
    return KnownCode(frozenset(targets), frozenset(map(_normalised, expressions)))


def _normalised(text: str) -> str:
    return text.replace("#", "::")


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text in a configuration, with the key that it is the value of."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, "")
    elif isinstance(value, str):
        yield key, value
