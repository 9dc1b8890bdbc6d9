"""What a configuration may call: a model file lists only what computes, and a training only what shipped ones contain.

MONAI turns a configuration into Python calls: ``_target_`` names what is called, texts that begin with ``$`` are
evaluated, and ``%file.json`` inserts another file. Anything that is not listed here runs only within :func:`trusting`.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_diffae.bundle.layout import CONFIGS, shipped
from monai_diffae.errors import UnsafeInputError, quoted

TRUST = "MONAI_DIFFAE_TRUST"
"""The environment variable of :func:`trusting`, so that processes that a command starts trust as it does."""

_LAYERS = (
    "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "Flatten", "GELU", "Identity", "LayerNorm", "LeakyReLU", "Linear",
    "ReLU", "Sequential", "SiLU", "Tanh",
)  # fmt: skip
_TRANSFORMS = (
    "AdjustContrastd", "BorderPadd", "CenterSpatialCropd", "Compose", "CopyItemsd", "CropForegroundd", "DivisiblePadd",
    "EnsureChannelFirstd", "EnsureTyped", "Flipd", "GaussianSharpend", "GaussianSmoothd", "HistogramNormalized",
    "MedianSmoothd", "NormalizeIntensityd", "Orientationd", "Resized", "ResizeWithPadOrCropd", "Rotate90d",
    "ScaleIntensityRangePercentilesd", "ScaleIntensityRanged", "ScaleIntensityd", "Spacingd", "SpatialCropd",
    "SpatialPadd", "ThresholdIntensityd", "Zoomd",
)  # fmt: skip
_AUGMENTATIONS = (
    "Rand2DElasticd", "Rand3DElasticd", "RandAdjustContrastd", "RandAffined", "RandAxisFlipd", "RandBiasFieldd",
    "RandCoarseDropoutd", "RandCoarseShuffled", "RandFlipd", "RandGaussianNoised", "RandGaussianSharpend",
    "RandGaussianSmoothd", "RandGibbsNoised", "RandHistogramShiftd", "RandRicianNoised", "RandRotate90d",
    "RandRotated", "RandScaleIntensityd", "RandShiftIntensityd", "RandSimulateLowResolutiond", "RandSpatialCropd",
    "RandStdShiftIntensityd", "RandZoomd",
)  # fmt: skip
_OURS = (
    "diffusion.DiffusionSchedule", "inferers.DiffusionAutoencoderInferer", "inferers.LatentInferer",
    "networks.DenoisingUNet", "networks.DiffusionAutoencoder", "networks.EncoderAdapter", "networks.FirstStage",
    "networks.LatentMLP", "networks.SemanticEncoder", "networks.preset", "transforms.ReadScand",
    "transforms.SmoothForSpacingd", "transforms.ToModelRanged", "transforms.ToRASd", "transforms.ToSpacingd",
)  # fmt: skip
MODEL_TARGETS = frozenset(
    {
        *(f"monai.networks.nets.resnet{layers}" for layers in (10, 18, 34, 50, 101, 152, 200)),
        "monai.networks.nets.AutoencoderKL",
        *(f"torch.nn.{name}" for name in _LAYERS),
        *(name for short in _TRANSFORMS for name in (short, f"monai.transforms.{short}")),
        *(f"monai_diffae.{name}" for name in _OURS),
    }
)
"""What a model file may build: none of these writes a file, reads others than the scan, or calls what a text names."""

_MORE_IN_TRAININGS = (
    *(name for short in _AUGMENTATIONS for name in (short, f"monai.transforms.{short}")),
    *(f"torch.nn.{name}" for name in ("L1Loss", "MSELoss", "SmoothL1Loss")),
    *(f"torch.optim.{name}" for name in ("Adam", "AdamW", "RAdam", "SGD")),
)
_SHIPPED = (
    "train.json", "train_latent.json", "distill.json", "multi_gpu_train.json", "multi_gpu_train_latent.json",
    "latent_paper.json", "federated.json",
)  # fmt: skip
_WRITTEN_BY_TRAINING = ("$@bundle_root + '/models/model.safetensors'",)
_LONGEST_CHAIN = 20  # of references
# The user's own places that are only read.
_READ_FROM = {"dataset_dir", "embeddings", "first_stage_bundle", "patient_pattern"}
_READS = {*_READ_FROM, "bundle", "cohort"}  # arguments that get them
_PLACE = re.compile(r"[/\\~]|[A-Za-z][\w+.-]*:[/\\]|(.*[/\\])?\.\.([/\\]|$)", re.DOTALL)


@contextmanager
def trusting() -> Iterator[None]:
    """Build what any model file or configuration names while this is active; ``--trust`` of the command line is this.

    Example:
        >>> with trusting():  # doctest: +SKIP
        ...     trained = monai_diffae.load_bundle("my_model")
    """
    before = os.environ.get(TRUST)
    os.environ[TRUST] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRUST]
        else:
            os.environ[TRUST] = before


def is_trusting() -> bool:
    """Whether this is called within :func:`trusting`."""
    return os.environ.get(TRUST) == "1"


def refuse_code(found: list[str], name: str) -> None:
    """Raise an error about the first of the parts that run code, unless they are trusted."""
    if found and not is_trusting():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UnsafeInputError(
            f"{name} is not trusted to use {found[0]}{more}; nothing was run. Add --trust to run it, if you trust its "
            "author"
        )


def check_code(config: Mapping[str, Any], name: str, *, places: bool = True) -> None:
    """Refuse a training's configuration with code that no shipped one contains; nothing of it is run.

    Places outside of the bundle, to which a training could write or send, are refused, too, unless ``places`` is False,
    as for values that the user gave.
    """
    try:
        found = list(_code(config, "", ConfigParser(dict(config)) if places else None))
    except RecursionError as error:
        raise UnsafeInputError(f"{name}: is nested too deep; get it again") from error
    refuse_code(found, name)


def _code(value: Any, id: str, parser: ConfigParser | None) -> Iterator[str]:
    """Code in a part of a configuration; with the parser of all of it, also places."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _code_of_item(str(key), item, f"{id}#{key}" if id else str(key), parser)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _code(item, f"{id}#{number}", parser)
    elif isinstance(value, str):
        if value.startswith("$") and value.replace("#", "::") not in _shipped_code()[1]:
            yield f"the expression {quoted(value)} at {quoted(id)}"
        elif value.startswith("%") and re.search(r"\.(json|ya?ml)", value, re.IGNORECASE):
            yield f"the file {quoted(value)} at {quoted(id)}"
        elif parser is not None and not value.startswith("$") and _PLACE.match(place := _referred(value, id, parser)):
            yield f"the place {quoted(place)} at {quoted(id)}"


def _referred(text: str, id: str, parser: ConfigParser) -> str:
    """The text that a value stands for: itself, or that at the end of its references."""
    id = id.replace("#", "::")
    for _ in range(_LONGEST_CHAIN):
        if not text.startswith(("@", "%")):
            return text
        try:
            id = ConfigParser.resolve_relative_ids(id, text)[1:]
            text = "/" if id.startswith("_meta_") else parser[id]  # of which no places are checked
        except (LookupError, ValueError, TypeError):
            return ""  # refused when it is evaluated
        if not isinstance(text, str):
            return ""  # it is checked where it is
    return "/"


def _code_of_item(key: str, item: Any, id: str, parser: ConfigParser | None) -> Iterator[str]:
    name = re.split("#|::", key)[-1].removeprefix("+")
    if name == "_target_":
        if not (isinstance(item, str) and item in _shipped_code()[0]):
            yield f"the target {quoted(str(item))} at {quoted(id)}"
    elif name in ("_mode_", "_debug_") or (name == "pretrained" and item not in (None, False)):
        yield f"the argument {quoted(str(item))} at {quoted(id)}"
    else:
        is_text = isinstance(item, str) and not re.match(r"[/\\]{2}", item)
        is_read = is_text and name in (_READS if item.startswith("@") else _READ_FROM)
        yield from _code(item, id, None if is_read or id == "_meta_" else parser)


@functools.cache
def _shipped_code() -> tuple[frozenset[str], frozenset[str]]:
    """The targets and expressions of all shipped trainings and overlays, and the lists of this file."""
    files = [file for name in _SHIPPED for file in shipped("bundles").glob(f"*/{CONFIGS}/**/{name}")]
    targets, expressions = {*MODEL_TARGETS, *_MORE_IN_TRAININGS}, set(_WRITTEN_BY_TRAINING)
    for file in [*files, *shipped("overlays").glob("*.json")]:
        for key, text in _texts(json.loads(Path(file).read_text(encoding="utf-8")), ""):
            if key.rpartition("#")[2] == "_target_":
                targets.add(text)
            elif text.startswith("$"):
                expressions.add(text.replace("#", "::"))
    return frozenset(targets), frozenset(expressions)


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
